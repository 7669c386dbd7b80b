import type { Database } from '../store/database.js';

/** `backup.json` of a backup, written last: a folder without it is not a backup. */
export interface Backup {
  formatVersion: 1;
  /** Number of the last schema migration. */
  schema: number;
  createTimeMs: number;
  incarnation: string;
  tables: { name: string; rowCount: number; sha256: string }[];
  /** Paths below `files`, which is laid out like a data folder. */
  files: { path: string; sizeBytes: number; sha256: string }[];
  /** Checkpoints that were deleted while they were copied; the backup has a newer one of each of these jobs. */
  dropped: { jobId: string; folder: string }[];
}

export const manifestName = 'backup.json';

/** The backup, or its source, is faulty; the message says how. */
export class BackupFailed extends Error {
  override name = 'BackupFailed';
}

/** Tables that are made again elsewhere, or have no meaning there. */
const leftOut = new Set(['servers', 'gang_places', 'purges', 'blob_chunks', 'blob_files', 'schema_version']);

/** Tables that others refer to come first. */
const parents = [
  'store_info',
  'jobs',
  'datasets',
  'weights',
  'artifacts',
  'attempts',
  'journal_readers',
  'webhooks',
];

/** Names of the tables in a backup, in the order in which they can be filled. */
export async function keptTables(db: Database): Promise<string[]> {
  const tables = (await db.introspection.getTables()).map(({ name }) => name);
  const place = (name: string): number => (parents.indexOf(name) + parents.length + 1) % (parents.length + 1);
  return tables
    .filter((name) => !leftOut.has(name) && !name.startsWith('sqlite_'))
    .sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
}

/** Folders of the data folder that belong to a row of a table. */
export function folderOf(table: string, row: Readonly<Record<string, unknown>>): string[] {
  const text = (column: string): string => String(row[column]);
  switch (table) {
    case 'checkpoints':
      return row.corrupt === 0 ? [`jobs/${text('job_id')}/checkpoints/${text('folder')}`] : [];
    case 'artifacts':
      return row.state === 'ready' ? [`jobs/${text('job_id')}/artifacts/${text('id')}`] : [];
    case 'weights':
      return row.state === 'ready' ? [`weights/${text('id')}`] : [];
    case 'datasets':
      if (row.state === 'ready') return [`datasets/${text('id')}/prepared`];
      return row.state === 'preparing' ? [`datasets/${text('id')}/uploads`] : [];
    default:
      return [];
  }
}
