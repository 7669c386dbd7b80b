import type { Database } from '../store/database.js';

/** `backup.json` of a backup, written last: a folder without it is none. */
export interface Backup {
  formatVersion: 1;
  /** Number of the schema's last migration. */
  schema: number;
  createTimeMs: number;
  incarnation: string;
  tables: { name: string; rowCount: number; sha256: string }[];
  /** Below `files`, laid out as a data folder is. */
  files: { path: string; sizeBytes: number; sha256: string }[];
  /** Checkpoints that were thrown away while they were copied; each has a successor here. */
  dropped: { jobId: string; folder: string }[];
}

export const manifestName = 'backup.json';

/** The backup, or what was to be backed up, is not as it should be; the message says how. */
export class BackupFailed extends Error {
  override name = 'BackupFailed';
}

/** Made again elsewhere, or of no meaning there. */
const leftOut = new Set(['servers', 'gang_places', 'purges', 'blob_chunks', 'blob_files', 'schema_version']);

/** What others refer to comes first. */
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

/** Names of the tables that are kept, in the order in which they can be filled. */
export async function keptTables(db: Database): Promise<string[]> {
  const tables = (await db.introspection.getTables()).map(({ name }) => name);
  const place = (name: string): number => (parents.indexOf(name) + parents.length + 1) % (parents.length + 1);
  return tables
    .filter((name) => !leftOut.has(name) && !name.startsWith('sqlite_'))
    .sort((a, b) => place(a) - place(b) || (a < b ? -1 : 1));
}

/** Folders of the data folder that rows of a table stand for. */
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
