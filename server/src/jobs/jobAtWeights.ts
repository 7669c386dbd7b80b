import type { Database } from '../store/database.js';
import { terminalStates } from './job.js';

/** Name of a job that begins at these weights or this artifact and has not ended, which they must not be deleted under. */
export async function jobAtWeights(db: Database, name: string): Promise<string | undefined> {
  const job = await db
    .selectFrom('jobs')
    .select('id')
    .where('state', 'not in', terminalStates)
    .where('base_weights_name', '=', name)
    .executeTakeFirst();
  return job && `jobs/${job.id}`;
}
