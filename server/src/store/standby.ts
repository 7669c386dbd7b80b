import { sql } from 'kysely';
import type { Database } from './database.js';

/** Warns that a failover of PostgreSQL would lose commits; undefined if each commit is confirmed by two machines. */
export async function standbyWarning(db: Database): Promise<string | undefined> {
  const { rows } = await sql<{ names: string }>`
    select current_setting('synchronous_standby_names') as names`.execute(db);
  if (rows[0]!.names !== '') return undefined;
  return (
    'PostgreSQL has no synchronous standby (synchronous_standby_names is empty): if its disk is lost, so is what was acknowledged last. ' +
    'Add one, unless the disk itself is replicated'
  );
}
