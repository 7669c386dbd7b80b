import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { onTestFinished } from 'vitest';
import { patientSettings } from '../patience.mjs';
import { storeSettings } from '../server/testStore.js';

export const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));

/** The server as users run it: a separate process, which can be killed. */
export interface ServerProcess {
  process: ChildProcess;
  grpcAddress: string;
  httpAddress: string;
  /** Lines of standard output that are JSON. */
  logged: Record<string, unknown>[];
  /** Its standard error so far. */
  errors(): string;
  /** Resolves with how the process ended. */
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
}

/**
 * Starts the server on a data folder, optionally as another user or behind the words of a prefix, and resolves with its addresses; it is
 * killed after the test, or when `atEnd` says.
 */
export async function startServerProcess(
  dataFolder: string,
  settings: Record<string, string> = {},
  atEnd: (stop: () => Promise<void>) => void = onTestFinished,
  { prefix = [], ...user }: { uid?: number; gid?: number; prefix?: readonly string[] } = {},
): Promise<ServerProcess> {
  const [program, ...args] = [...prefix, process.execPath, main];
  const child = spawn(program!, args, {
    ...user,
    env: {
      PATH: process.env.PATH,
      RELORA_DATA_FOLDER: dataFolder,
      RELORA_GRPC_ADDRESS: '127.0.0.1:0',
      RELORA_HTTP_ADDRESS: '127.0.0.1:0',
      RELORA_FREE_DISK_BYTES_MIN: '0',
      RELORA_RETRY_DELAY_SECONDS: '0.01',
      RELORA_THREADS: '1',
      ...patientSettings,
      ...(settings.RELORA_DATABASE_URL === undefined && (await storeSettings(dataFolder))),
      ...settings,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }));
  });
  atEnd(async () => {
    child.kill('SIGKILL');
    await exited;
  });
  let errors = '';
  child.stderr.on('data', (data: Buffer) => (errors += data.toString()));
  const logged: Record<string, unknown>[] = [];
  const addresses = new Promise<{ grpcAddress: string; httpAddress: string }>((resolve, reject) => {
    createInterface({ input: child.stdout }).on('line', (line) => {
      // A JSON parser would keep only one of them, which one is undefined.
      if (/"(pid|hostname|time|jobId|artifactId|datasetId)":[^]*,"\1":/.test(line))
        throw new Error(`A line of the log has one key twice: ${line}`);
      const entry = JSON.parse(line) as Record<string, unknown>;
      logged.push(entry);
      const { grpcAddress, httpAddress } = entry;
      if (typeof grpcAddress === 'string' && typeof httpAddress === 'string')
        resolve({ grpcAddress, httpAddress });
    });
    void exited.then(({ code }) => reject(new Error(`The server ended with code ${code}: ${errors}`)));
  });
  return { process: child, logged, errors: () => errors, exited, ...(await addresses) };
}
