import type { Transaction } from 'kysely';
import type { Schema } from './schema.js';
import { tenantOf } from './tenantIds.js';

/** A request with the id that its client gave it, by which a retry is recognized. */
export interface Request {
  requestId: string;
  /** Digest of everything that was asked for: the same id with another digest is a conflict. */
  digest: string;
  /** What it creates or changes: jobs/… or jobs/…/artifacts/…, with ids. */
  subject: string;
}

/**
 * Records a request in a transaction. `new`: its id was unknown until now. `conflict`: the id was used for another request. Else the
 * subject of the first request with this id, which may have been deleted since. If two come at the same time, one waits here for the end of
 * the other.
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

/** How long a request is remembered after its subject was deleted: a client may be offline for weeks before it repeats a call. */
const keptMs = 30 * 86_400_000;

/** Call this when the subject of requests, with everything below it, was deleted. */
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

/** Request ids are per tenant: two tenants may use the same one. */
function tenantOfSubject(subject: string): string {
  return tenantOf(subject.split('/')[1] ?? '');
}
