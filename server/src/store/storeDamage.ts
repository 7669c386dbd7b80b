import type { SqliteConnection } from './sqliteConnection.js';

/** They grow with the steps of jobs, and are nearly all of a large store. Damage in one of their pages is found when it is read. */
const historyTables = new Set(['events', 'step_spans']);

/** Damage to the pages of a store, as SQLite describes it; null for none. In a store above the size limit, history is not checked. */
export function storeDamage(connection: SqliteConnection, wholeCheckBytesMax: number): string | null {
  const sizeBytes =
    Number(connection.first('pragma page_count')) * Number(connection.first('pragma page_size'));
  const checks =
    sizeBytes <= wholeCheckBytesMax
      ? ['quick_check(1)']
      : smallTables(connection).map((name) => `quick_check(${name})`);
  for (const check of checks) {
    const found = connection.first(`pragma ${check}`);
    if (found !== 'ok') return String(found);
  }
  return null;
}

function smallTables(connection: SqliteConnection): string[] {
  const tables = connection
    .prepare("select name from sqlite_schema where type = 'table' and name not like 'sqlite_%'")
    .all();
  return (tables as { name: string }[]).map(({ name }) => name).filter((name) => !historyTables.has(name));
}
