import { register } from 'node:module';
import { isMainThread } from 'node:worker_threads';

/**
 * Makes a server that is started with `--import` of this one of a later version, whose schema has one more step: a column in each table that
 * servers write while jobs run.
 */
if (isMainThread) register(import.meta.url);

const tables = ['jobs', 'events', 'checkpoints', 'artifacts', 'datasets', 'blob_files', 'servers'];
const statements = tables.map((table) => `alter table ${table} add column remark text not null default '';`);
const step = { sqlite: statements.join('\n'), postgres: statements.join('\n') };

export async function load(url, context, nextLoad) {
  const loaded = await nextLoad(url, context);
  if (!url.endsWith('/server/dist/store/migrations.js')) return loaded;
  return { ...loaded, source: `${String(loaded.source)}\nmigrations.push(${JSON.stringify(step)});\n` };
}
