import { pathToFileURL } from 'node:url';
import { ReloraClient } from '@relora/sdk';
import { onTestFinished } from 'vitest';
import { freshDatabase, hasPostgres } from '../server/postgres.js';
import { freshBucket, hasS3 } from '../server/s3.js';
import { startServerProcess, type ServerProcess } from './serverProcess.js';
import { temporaryFolder, tinyText } from './tinyJob.js';

/** Long enough that no busy server loses its leases. */
const leaseSeconds = 5;

/** Kinds of shared file storage available on this machine. */
export const blobStores = [
  { name: 'a folder', url: async () => pathToFileURL(temporaryFolder()).href, skip: !hasPostgres },
  { name: 'S3', url: freshBucket, skip: !hasPostgres || !hasS3 },
].filter(({ skip }) => !skip);

/** A server that can be started again in the same place. */
export interface FleetServer extends ServerProcess {
  folder: string;
  /** Starts it at the same address, on the same folder; `changes` apply to its settings. */
  again(changes?: Record<string, string>): Promise<FleetServer>;
}

/** Servers with a common store, each with its own data folder as on separate machines, and a client of all of them. */
export async function fleet(
  count: number,
  blobsUrl: string,
  changes: Record<string, string> = {},
  changesOf: (index: number) => Record<string, string> = () => ({}),
) {
  const settings = {
    RELORA_DATABASE_URL: await freshDatabase(),
    RELORA_STORE_URL: blobsUrl,
    RELORA_LEASE_SECONDS: String(leaseSeconds),
    AWS_ACCESS_KEY_ID: process.env.AWS_ACCESS_KEY_ID!,
    AWS_SECRET_ACCESS_KEY: process.env.AWS_SECRET_ACCESS_KEY!,
    ...changes,
  };
  const servers: FleetServer[] = [];
  const folders = Array.from({ length: count }, temporaryFolder);
  for (const [index, folder] of folders.entries())
    servers.push(await startIn(folder, { ...settings, ...changesOf(index) }));
  const client = clientOf(...servers.map(({ grpcAddress }) => grpcAddress));
  return { settings, servers, folders, client };
}

async function startIn(folder: string, settings: Record<string, string>): Promise<FleetServer> {
  const server = await startServerProcess(folder, settings);
  const again = async (changes = {}): Promise<FleetServer> =>
    await startIn(folder, { ...settings, RELORA_GRPC_ADDRESS: server.grpcAddress, ...changes });
  return { ...server, folder, again };
}

/** A client of one address or of several, closed after the test. */
export function clientOf(...addresses: string[]): ReloraClient {
  const client = new ReloraClient({ address: addresses.join(',') });
  onTestFinished(() => client.close());
  return client;
}

/** The server that runs a job, or ran it last: logs record the start of trainers. */
export function runnerOf<S extends ServerProcess>(servers: readonly S[], job: string): S {
  const starts = servers.flatMap((server) =>
    server.logged
      .filter(({ msg, jobId }) => msg === 'A trainer is started' && `jobs/${String(jobId)}` === job)
      .map(({ time }) => ({ server, timeMs: new Date(time as string | number).getTime() })),
  );
  return starts.sort((one, other) => one.timeMs - other.timeMs).at(-1)?.server as S;
}

export async function uploaded(client: ReloraClient): Promise<void> {
  const files = [{ content: tinyText(), fileName: 'tiny.txt' }];
  await client.uploadDataset({ datasetId: 'tiny-text', files });
}

/** SHA-256 of a job's weights, which are downloaded and verified. */
export async function weightsOf(client: ReloraClient, job: string): Promise<string> {
  const [artifact] = await client.listArtifacts(job);
  await client.downloadArtifact(artifact!.name, temporaryFolder()); // checks every hash
  return artifact!.files.find(({ fileName }) => fileName.endsWith('.safetensors'))!.sha256;
}
