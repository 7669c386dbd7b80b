import type { SqliteConnection } from './sqliteConnection.js';

/** They grow with the steps of jobs, and are nearly all of a large store. Damage in one of their pages is found when it is read. */
const historyTables = new Set(['events', 'step_spans']);

/**
 * Damage to the pages of a store, as SQLite describes it; null for none. In a store above the size limit, history is not checked. Throws
 * SQLITE_IOERR if a page cannot be read, which says nothing about its content.
 */
export function storeDamage(connection: SqliteConnection, wholeCheckBytesMax: number): string | null {
  const sizeBytes =
    Number(connection.first('pragma page_count')) * Number(connection.first('pragma page_size'));
  const checks =
    sizeBytes <= wholeCheckBytesMax
      ? ['quick_check(1)']
      : smallTables(connection).map((name) => `quick_check(${name})`);
  for (const check of checks) {
    const found = connection.first(`pragma ${check}`);
    if (found === 'ok') continue;
    const text = String(found);
    if (isOfDisk(text)) throw Object.assign(new Error(text), { code: 'SQLITE_IOERR' });
    return text;
  }
  return null;
}

/** The check describes a failed read among damage: by its result code, or without one for a page of a long value. */
function isOfDisk(text: string): boolean {
  const code = / error code=(\d+)/.exec(text)?.[1];
  return code === undefined ? text.includes('failed to get page') : (Number(code) & 0xff) === ioError;
}

/** SQLITE_IOERR; extended codes have it in their lowest byte. */
const ioError = 10;

function smallTables(connection: SqliteConnection): string[] {
  const tables = connection
    .prepare("select name from sqlite_schema where type = 'table' and name not like 'sqlite_%'")
    .all();
  return (tables as { name: string }[]).map(({ name }) => name).filter((name) => !historyTables.has(name));
}
