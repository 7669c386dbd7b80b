import { ReloraClient } from '@relora/sdk';
import { createLog, readConfig, startServer } from '@relora/server';
import { onTestFinished } from 'vitest';
import { temporaryFolder } from '../e2e/tinyJob.js';
import { patientSettings } from '../patience.mjs';
import { storeSettings } from '../server/testStore.js';

/** The real server on free ports, and a client of it; both are closed after the test. */
export async function realServer(settings: Record<string, string> = {}) {
  const dataFolder = temporaryFolder();
  const config = readConfig({
    RELORA_DATA_FOLDER: dataFolder,
    RELORA_GRPC_ADDRESS: '127.0.0.1:0',
    RELORA_HTTP_ADDRESS: '127.0.0.1:0',
    RELORA_FREE_DISK_BYTES_MIN: '0',
    RELORA_THREADS: '1',
    RELORA_LOG_LEVEL: 'silent',
    ...patientSettings,
    ...(await storeSettings(dataFolder)),
    ...settings,
  });
  const server = await startServer(config, { log: createLog(config) });
  const client = new ReloraClient({ address: server.grpcAddress });
  onTestFinished(async () => {
    client.close();
    await server.stop();
  });
  const { dataFolder: folder } = config;
  return { server, client, address: server.grpcAddress, httpAddress: server.httpAddress, dataFolder: folder };
}
