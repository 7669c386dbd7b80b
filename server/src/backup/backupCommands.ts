import { resolve } from 'node:path';
import type { AdminHandlers } from '../admin/adminServer.js';
import { askServer } from '../admin/askServer.js';
import type { Config } from '../config.js';
import { openStore, type Store, type StoreOptions } from '../store/openStore.js';
import { migrations } from '../store/migrations.js';
import type { Backup } from './backup.js';
import { readBackup } from './readBackup.js';
import { writeBackup } from './writeBackup.js';

export const backupUsage = `relora-server migrate
relora-server backup FOLDER
relora-server restore FOLDER`;

export const backupCommands: ReadonlySet<string> = new Set(['migrate', 'backup', 'restore']);

/** The settings for opening a store. */
export function storeOptions(config: Config): StoreOptions {
  return {
    leaseMs: config.leaseSeconds * 1000,
    url: config.databaseUrl ?? undefined,
    blobsUrl: config.storeUrl,
    cacheBytesMax: config.cacheBytesMax,
    reserveBytes: config.storeReserveBytes,
    wholeCheckBytesMax: config.storeCheckBytesMax,
  };
}

/** A command with wrong arguments. */
export class BackupUsage extends Error {
  override name = 'BackupUsage';
}

/** Runs one of the commands; `note` gets a message about what was done. */
export async function backupCommand(
  config: Config,
  command: string,
  args: readonly string[],
  note: (text: string) => void,
): Promise<void> {
  const [folder] = args.map((path) => resolve(path));
  if (args.length !== (command === 'migrate' ? 0 : 1)) throw new BackupUsage(`Expected:\n${backupUsage}`);
  if (command === 'backup') {
    // If the store is a file, only the running server can use it; with PostgreSQL it makes no difference.
    const asked = await askServer<Backup>(config.dataFolder, 'backup', { folder });
    const made =
      asked?.result ??
      (await withStore(config, async (store) => await writeBackup(sourceOf(config, store), folder!)));
    return note(`${folder} has ${summaryOf(made)}`);
  }
  await withStore(config, async (store) => {
    if (command === 'migrate') return note(`The store has schema ${migrations.length}`);
    note(`Restored ${summaryOf(await readBackup(store, config.dataFolder, folder!))}`);
  });
}

/** The handlers of these commands in the running server. */
export function backupHandlers(config: Config, store: Store): AdminHandlers {
  return {
    backup: async ({ folder }: { folder: string }) => await writeBackup(sourceOf(config, store), folder),
  };
}

function sourceOf({ dataFolder }: Config, { db, stage, info }: Store) {
  return { db, stage, dataFolder, incarnation: info.incarnation };
}

async function withStore<T>(config: Config, work: (store: Store) => Promise<T>): Promise<T> {
  const store = await openStore(config.dataFolder, storeOptions(config));
  try {
    return await work(store);
  } finally {
    await store.close();
  }
}

function summaryOf({ tables, files }: Backup): string {
  const count = (name: string): number => tables.find((table) => table.name === name)?.rowCount ?? 0;
  const bytes = files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  return `${count('jobs')} jobs, ${count('datasets')} data sets, ${count('weights')} weights and ${files.length} files of ${bytes} bytes`;
}
