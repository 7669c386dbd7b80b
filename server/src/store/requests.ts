import type { Transaction } from 'kysely';
import type { Schema } from './schema.js';

/** A wish with the id that its client gave it, so that a retry is known as one. */
export interface Request {
  requestId: string;
  /** Of all that was asked for: the same id with another digest is a conflict. */
  digest: string;
  /** What it makes or changes: jobs/… or jobs/…/artifacts/…, with ids. */
  subject: string;
}

/**
 * Notes a request in a transaction. `new`: it was not known and is now. Else what the first one with its id was about, which
 * may have been thrown away since. Of two at once one waits here for the other's end.
 */
export async function takeRequest(
  trx: Transaction<Schema>,
  { requestId, digest, subject }: Request,
  nowMs: number,
): Promise<'new' | 'conflict' | { subject: string }> {
  const noted = await trx
    .insertInto('requests')
    .values({ request_id: requestId, digest, subject, create_time_ms: nowMs })
    .onConflict((conflict) => conflict.doNothing())
    .returning('subject')
    .executeTakeFirst();
  if (noted !== undefined) return 'new';
  const first = await trx
    .selectFrom('requests')
    .select(['digest', 'subject'])
    .where('request_id', '=', requestId)
    .executeTakeFirstOrThrow();
  return first.digest === digest ? { subject: first.subject } : 'conflict';
}

/** Forgets a request that was refused: it may succeed another time. */
export async function releaseRequest(trx: Transaction<Schema>, requestId: string): Promise<void> {
  await trx.deleteFrom('requests').where('request_id', '=', requestId).execute();
}
