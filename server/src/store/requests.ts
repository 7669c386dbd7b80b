import type { Transaction } from 'kysely';
import type { Schema } from './schema.js';
import { tenantOf } from './tenantIds.js';

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
  const tenant = tenantOfSubject(subject);
  const noted = await trx
    .insertInto('requests')
    .values({ tenant, request_id: requestId, digest, subject, create_time_ms: nowMs })
    .onConflict((conflict) => conflict.doNothing())
    .returning('subject')
    .executeTakeFirst();
  if (noted !== undefined) return 'new';
  const first = await trx
    .selectFrom('requests')
    .select(['digest', 'subject'])
    .where('tenant', '=', tenant)
    .where('request_id', '=', requestId)
    .executeTakeFirstOrThrow();
  return first.digest === digest ? { subject: first.subject } : 'conflict';
}

/** How long a request is known after what it made is gone: a client may be away for weeks before it repeats a call. */
const keptMs = 30 * 86_400_000;

/** What these requests made is thrown away, with all below it. */
export async function expireRequests(
  trx: Transaction<Schema>,
  subject: string,
  nowMs: number,
): Promise<void> {
  await trx
    .updateTable('requests')
    .set({ expire_time_ms: nowMs + keptMs })
    .where('expire_time_ms', 'is', null)
    .where(({ eb, or, and }) =>
      or([
        eb('subject', '=', subject),
        and([eb('subject', '>', `${subject}/`), eb('subject', '<', `${subject}0`)]),
      ]),
    )
    .execute();
}

/** Forgets a request that was refused: it may succeed another time. */
export async function releaseRequest(
  trx: Transaction<Schema>,
  { requestId, subject }: Pick<Request, 'requestId' | 'subject'>,
): Promise<void> {
  await trx
    .deleteFrom('requests')
    .where('tenant', '=', tenantOfSubject(subject))
    .where('request_id', '=', requestId)
    .execute();
}

/** Request ids are those of a tenant: two tenants may use the same. */
function tenantOfSubject(subject: string): string {
  return tenantOf(subject.split('/')[1] ?? '');
}
