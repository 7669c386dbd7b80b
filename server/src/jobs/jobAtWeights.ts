import type { Database } from '../store/database.js';
import { terminalStates } from './job.js';

/** Name of an unfinished job that begins at these weights or this artifact, which therefore must not be deleted. */
export async function jobAtWeights(db: Database, name: string): Promise<string | undefined> {
  const job = await db
    .selectFrom('jobs')
    .select('id')
    .where('state', 'not in', terminalStates)
    .where('base_weights_name', '=', name)
    .executeTakeFirst();
  return job && `jobs/${job.id}`;
}
