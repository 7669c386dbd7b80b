import { TrainingServiceDefinition, DatasetServiceDefinition } from '@relora/sdk/contract';
import { createLog, readConfig, startServer } from '@relora/server';
import type { MethodDefinition, ServiceDefinition } from '@grpc/grpc-js';
import { createChannel, createClient } from 'nice-grpc';
import { onTestFinished } from 'vitest';
import { standardService } from '../../server/dist/grpc/standardServices.js';
import { patientSettings } from '../patience.mjs';
import { temporaryFolder } from './parts.js';
import { storeSettings } from './testStore.js';

const { Check, Watch } = standardService('grpc.health.v1.Health');
export const healthService = { check: Check, watch: Watch } as unknown as ServiceDefinition & {
  check: MethodDefinition<{ service: string }, { status: number }> & {
    requestStream: false;
    responseStream: false;
  };
  watch: MethodDefinition<{ service: string }, { status: number }> & {
    requestStream: false;
    responseStream: true;
  };
};

export type RunningTestServer = Awaited<ReturnType<typeof runServer>>;

/** A complete server in this process, on free ports; stopped after the test. */
export async function runServer(settings: Record<string, string> = {}, dataFolder = temporaryFolder()) {
  const config = readConfig({
    RELORA_DATA_FOLDER: dataFolder,
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_FREE_DISK_BYTES_MIN: '0',
    RELORA_LOG_LEVEL: 'silent',
    ...patientSettings,
    ...(await storeSettings(dataFolder)),
    ...settings,
  });
  const server = await startServer(config, { log: createLog(config) });
  const channel = createChannel(server.grpcAddress);
  onTestFinished(async () => {
    channel.close();
    await server.stop();
  });
  return {
    server,
    dataFolder,
    channel,
    health: createClient(healthService, channel),
    training: createClient(TrainingServiceDefinition, channel),
    datasets: createClient(DatasetServiceDefinition, channel),
    /** Fetches from its HTTP port. */
    fetch: async (
      path: string,
      init: RequestInit = {},
    ): Promise<{ status: number; text: string; headers: Headers }> => {
      const response = await fetch(`http://${server.httpAddress}${path}`, init);
      return { status: response.status, text: await response.text(), headers: response.headers };
    },
  };
}
