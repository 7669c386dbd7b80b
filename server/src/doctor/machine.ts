import { open, stat, statfs, access, constants } from 'node:fs/promises';
import { createServer } from 'node:net';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ConfigInvalid, settings, type Config } from '../config.js';
import { freeMemoryBytes, jobShareBytes, machineMemoryBytes } from '../machineMemory.js';
import { connectionsWithin } from '../openFiles.js';
import { Confinement } from '../trainer/confinement.js';
import { applicationId, migrations } from '../store/migrations.js';
import { fault, ok, warning, type Finding } from './finding.js';

const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

/** With less memory not even a small model can train. */
const jobBytesMin = 2 ** 29;

export function memoryFinding({ slots, jobMemoryBytesMax }: Config): Finding {
  const share = jobMemoryBytesMax || jobShareBytes(slots);
  const text = `${gib(machineMemoryBytes())}, ${gib(freeMemoryBytes())} free; a job may have ${gib(share)}`;
  if (share > machineMemoryBytes())
    return fault('memory', text, 'lower RELORA_JOB_MEMORY_BYTES_MAX below what the machine or container has');
  if (share < jobBytesMin) return warning('memory', text, 'lower RELORA_SLOTS, or give the container more');
  return ok('memory', text);
}

export async function diskFinding({ dataFolder, freeDiskBytesMin }: Config): Promise<Finding> {
  const { bavail, bsize } = await statfs(await nearestFolder(dataFolder));
  const free = bavail * bsize;
  const text = `${gib(free)} free for ${dataFolder}`;
  if (free >= freeDiskBytesMin) return ok('disk', text);
  return fault(
    'disk',
    `${text}; no job starts below ${gib(freeDiskBytesMin)}`,
    `free some, or set ${settings.dataFolder.variable} to a larger disk`,
  );
}

export function openFilesFinding(config: Config): Finding {
  try {
    const connections = connectionsWithin(config);
    const text = `enough for ${connections} connections`;
    return connections < config.connectionsMax
      ? warning(
          'open files',
          text,
          `raise the limit (ulimit -n) for the ${config.connectionsMax} that the settings allow`,
        )
      : ok('open files', text);
  } catch (error) {
    if (!(error instanceof ConfigInvalid)) throw error;
    const [what, cure] = error.message.split(': ') as [string, string];
    return fault('open files', what, cure);
  }
}

/** Whether the kernel can confine children. */
export function sandboxFinding(
  config: Config,
  { means, problem } = new Confinement(config),
  unconfinedCards: string | null = null,
): Finding {
  if (means !== null && unconfinedCards !== null)
    return warning(
      'sandbox',
      `children are confined by ${means}, but not trainers on a card: ${unconfinedCards}`,
      'RELORA_SANDBOX=required confines them too; jobs on a card then fail if the driver does not work so',
    );
  if (means !== null) return ok('sandbox', `children are confined by ${means}`);
  if (config.sandbox === 'off')
    return warning('sandbox', 'children are not confined', 'leave RELORA_SANDBOX at auto');
  const cure = 'use Linux 5.19 or newer with Landlock, and a container that lets its system calls through';
  const text = `children are not confined: ${problem}`;
  return config.sandbox === 'required' ? fault('sandbox', text, cure) : warning('sandbox', text, cure);
}

/** Whether the port is available now. */
export async function portFinding(config: Config, name: 'grpcAddress' | 'httpAddress'): Promise<Finding> {
  const { host, port } = config[name];
  const { variable } = settings[name];
  const label = name === 'grpcAddress' ? 'gRPC port' : 'HTTP port';
  const server = createServer();
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(port, host, resolve);
    });
    return ok(label, `${host}:${port} is free`);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why = code === 'EADDRINUSE' ? 'something else listens there' : (error as Error).message;
    return fault(
      label,
      `${host}:${port} cannot be used: ${why}`,
      `stop what listens there, or set ${variable}`,
    );
  } finally {
    server.close();
  }
}

/** A small difference between clocks does no harm. */
const clockToleranceMs = 60_000;

/** Events, leases and certificates depend on the clock: it must not be earlier than files that exist already. */
export async function clockFinding({ dataFolder }: Config): Promise<Finding> {
  const own = fileURLToPath(import.meta.url);
  const written = await Promise.all(
    [own, join(dataFolder, 'store.db')].map(
      async (path) => (await stat(path).catch(() => null))?.mtimeMs ?? 0,
    ),
  );
  const latestMs = Math.max(...written);
  const text = `${new Date().toISOString()}`;
  if (latestMs <= Date.now() + clockToleranceMs) return ok('clock', text);
  return fault(
    'clock',
    `${text}, but files of this installation were written at ${new Date(latestMs).toISOString()}`,
    'set the clock, and keep it right with a time service',
  );
}

/** Offsets in SQLite's header: the application's version of the file, and the id of the application. */
const [versionAt, applicationAt, headerBytes] = [60, 68, 100];

export async function dataFolderFinding({ dataFolder }: Config, isRunning: boolean): Promise<Finding> {
  const name = 'data folder';
  const found = await stat(dataFolder).catch(() => null);
  if (found === null) {
    const parent = await nearestFolder(dataFolder);
    return (await isWritable(parent))
      ? ok(name, `${dataFolder} will be created at the first start`)
      : fault(
          name,
          `${dataFolder} cannot be created: ${parent} cannot be written`,
          'let this user write there, or set RELORA_DATA_FOLDER',
        );
  }
  if (!found.isDirectory())
    return fault(name, `${dataFolder} is no folder`, 'set RELORA_DATA_FOLDER to a folder');
  if (!(await isWritable(dataFolder)))
    return fault(
      name,
      `${dataFolder} cannot be written by this user`,
      'give the folder to the user of the server',
    );
  const store = await storeVersion(join(dataFolder, 'store.db'));
  if (store === 'foreign')
    return fault(
      name,
      `${join(dataFolder, 'store.db')} is not a store of this server`,
      'set RELORA_DATA_FOLDER to another folder',
    );
  if (store !== null && store > migrations.length)
    return fault(
      name,
      `The store has schema ${store}, this version knows ${migrations.length}`,
      'start the version that wrote it, or a newer one',
    );
  if ((found.mode & 0o077) !== 0)
    return warning(
      name,
      `${dataFolder} can be read by other users`,
      `chmod 700 ${dataFolder}: prompts, data and weights are in it`,
    );
  const schema = store === null ? 'no store yet' : `a store of schema ${store}`;
  return ok(name, `${dataFolder}, ${schema}${isRunning ? ', held by the running server' : ''}`);
}

async function storeVersion(path: string): Promise<number | 'foreign' | null> {
  const file = await open(path).catch(() => null);
  if (file === null) return null;
  try {
    const header = Buffer.alloc(headerBytes);
    const { bytesRead } = await file.read(header, 0, headerBytes, 0);
    if (bytesRead === 0) return null;
    // The header of a new file may still be in the write-ahead log next to it.
    const application = header.readUInt32BE(applicationAt);
    return bytesRead < headerBytes || (application !== applicationId && application !== 0)
      ? 'foreign'
      : header.readUInt32BE(versionAt);
  } finally {
    await file.close();
  }
}

async function isWritable(folder: string): Promise<boolean> {
  return await access(folder, constants.W_OK | constants.X_OK).then(
    () => true,
    () => false,
  );
}

/** The folder itself, or its nearest existing parent. */
async function nearestFolder(path: string): Promise<string> {
  for (let folder = path; ; folder = dirname(folder))
    if ((await stat(folder).catch(() => null)) !== null || dirname(folder) === folder) return folder;
}
