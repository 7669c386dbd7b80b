import type { Transaction } from 'kysely';
import type { JournalReaders } from '../jobs/journalReaders.js';
import type { ChangeFeed } from '../store/changeFeed.js';
import type { Database } from '../store/database.js';
import type { Schema, WebhookDeliveryRow } from '../store/schema.js';
import { idIn } from '../store/tenantIds.js';
import { toWebhook, type Webhook } from './webhook.js';

export type NewWebhook = Pick<
  Webhook,
  'tenant' | 'name' | 'owner' | 'url' | 'secret' | 'eventKinds' | 'labels'
>;

/** A webhook with the number of messages that are still to be sent. */
export interface WebhookSummary {
  webhook: Webhook;
  pendingCount: number;
  deadCount: number;
}

export interface DeliveryCursor {
  createTimeMs: number;
  id: string;
}

export function readerOf(webhookId: string): string {
  return `webhooks/${webhookId}`;
}

/** Webhooks, and messages to their receivers. */
export class WebhookStore {
  constructor(
    private readonly db: Database,
    private readonly feed: ChangeFeed,
    private readonly readers: JournalReaders,
    private readonly now: () => number,
  ) {}

  /** `conflict`: another one has the name. Creating the same one again returns the first. */
  async create(wanted: NewWebhook, countMax: number): Promise<Webhook | 'conflict' | 'tooMany'> {
    const id = idIn(wanted.tenant, wanted.name);
    const created = await this.db.transaction().execute(async (trx) => {
      const { count } = await trx
        .selectFrom('webhooks')
        .select(({ fn }) => fn.countAll<number>().as('count'))
        .where('tenant', '=', wanted.tenant)
        .where('id', '!=', id)
        .executeTakeFirstOrThrow();
      if (Number(count) >= countMax) return 'tooMany';
      const row = await trx
        .insertInto('webhooks')
        .values({
          id,
          tenant: wanted.tenant,
          name: wanted.name,
          owner: wanted.owner,
          url: wanted.url,
          secret: wanted.secret,
          event_kinds: JSON.stringify(wanted.eventKinds),
          labels: JSON.stringify(wanted.labels),
          create_time_ms: this.now(),
        })
        .onConflict((conflict) => conflict.doNothing())
        .returningAll()
        .executeTakeFirst();
      if (row === undefined) return 'exists';
      await this.readers.register(readerOf(id), { tenant: wanted.tenant, fromStart: false }, trx);
      return toWebhook(row);
    });
    if (created === 'exists') {
      const found = await this.find(id);
      return found !== undefined && isSame(found, wanted) ? found : 'conflict';
    }
    if (created !== 'tooMany') this.feed.announce({ topic: 'webhook', id });
    return created;
  }

  async find(id: string): Promise<Webhook | undefined> {
    const row = await this.db.selectFrom('webhooks').selectAll().where('id', '=', id).executeTakeFirst();
    return row === undefined ? undefined : toWebhook(row);
  }

  async all(): Promise<Webhook[]> {
    return (await this.db.selectFrom('webhooks').selectAll().execute()).map(toWebhook);
  }

  /** One page, ordered by name; `next` is null at the end. */
  async list(page: {
    tenant: string;
    after: string | null;
    webhooksMax: number;
  }): Promise<{ webhooks: WebhookSummary[]; next: string | null }> {
    const rows = await this.db
      .selectFrom('webhooks')
      .selectAll()
      .where('tenant', '=', page.tenant)
      .where('name', '>', page.after ?? '')
      .orderBy('name')
      .limit(page.webhooksMax + 1)
      .execute();
    const webhooks = rows.slice(0, page.webhooksMax).map(toWebhook);
    const counts = await this.counts(webhooks.map(({ id }) => id));
    return {
      webhooks: webhooks.map((webhook) => ({
        webhook,
        pendingCount: counts.get(`${webhook.id} pending`) ?? 0,
        deadCount: counts.get(`${webhook.id} dead`) ?? 0,
      })),
      next: rows.length > webhooks.length ? webhooks.at(-1)!.name : null,
    };
  }

  async summary(webhook: Webhook): Promise<WebhookSummary> {
    const counts = await this.counts([webhook.id]);
    return {
      webhook,
      pendingCount: counts.get(`${webhook.id} pending`) ?? 0,
      deadCount: counts.get(`${webhook.id} dead`) ?? 0,
    };
  }

  /** Returns whether it existed. Its unsent messages are deleted, too. */
  async delete(id: string): Promise<boolean> {
    const isDeleted = await this.db.transaction().execute(async (trx) => {
      await trx.deleteFrom('journal_readers').where('id', '=', readerOf(id)).execute();
      const { numDeletedRows } = await trx.deleteFrom('webhooks').where('id', '=', id).executeTakeFirst();
      return numDeletedRows > 0n;
    });
    if (isDeleted) this.feed.announce({ topic: 'webhook', id });
    return isDeleted;
  }

  /** Events that wait to be sent, of one webhook or of all. */
  async pendingCount(webhookId?: string): Promise<number> {
    let query = this.db
      .selectFrom('webhook_deliveries')
      .select(({ fn }) => fn.countAll<number>().as('count'))
      .where('state', '=', 'pending');
    if (webhookId !== undefined) query = query.where('webhook_id', '=', webhookId);
    return Number((await query.executeTakeFirstOrThrow()).count);
  }

  async add(trx: Transaction<Schema>, deliveries: readonly WebhookDeliveryRow[]): Promise<void> {
    for (let start = 0; start < deliveries.length; start += 64)
      await trx
        .insertInto('webhook_deliveries')
        .values(deliveries.slice(start, start + 64))
        .execute();
  }

  /** The delivery that is next, even if its time has not come. */
  async nextOf(webhookId: string): Promise<WebhookDeliveryRow | undefined> {
    return await this.db
      .selectFrom('webhook_deliveries')
      .selectAll()
      .where('webhook_id', '=', webhookId)
      .where('state', '=', 'pending')
      .orderBy('next_time_ms')
      .orderBy('create_time_ms')
      .orderBy('job_id')
      .orderBy('sequence')
      .limit(1)
      .executeTakeFirst();
  }

  async delivered({ id, webhook_id }: WebhookDeliveryRow, nowMs: number): Promise<void> {
    await this.db.transaction().execute(async (trx) => {
      await trx.deleteFrom('webhook_deliveries').where('id', '=', id).execute();
      await trx
        .updateTable('webhooks')
        .set({ last_success_time_ms: nowMs, last_failure: '' })
        .where('id', '=', webhook_id)
        .execute();
    });
  }

  /** Records a failed attempt: it is repeated at `nextTimeMs`, or never (null); of those, only the newest `deadMax` are kept. */
  async failed(
    { id, webhook_id, attempts }: WebhookDeliveryRow,
    failure: string,
    nextTimeMs: number | null,
    deadMax: number,
  ): Promise<void> {
    await this.db.transaction().execute(async (trx) => {
      await trx
        .updateTable('webhook_deliveries')
        .set({
          attempts: attempts + 1,
          failure,
          ...(nextTimeMs === null ? { state: 'dead' as const } : { next_time_ms: nextTimeMs }),
        })
        .where('id', '=', id)
        .execute();
      await trx.updateTable('webhooks').set({ last_failure: failure }).where('id', '=', webhook_id).execute();
      if (nextTimeMs !== null) return;
      await trx
        .deleteFrom('webhook_deliveries')
        .where('webhook_id', '=', webhook_id)
        .where('state', '=', 'dead')
        .where('id', 'not in', (query) =>
          query
            .selectFrom('webhook_deliveries')
            .select('id')
            .where('webhook_id', '=', webhook_id)
            .where('state', '=', 'dead')
            .orderBy('create_time_ms', 'desc')
            .orderBy('id', 'desc')
            .limit(deadMax),
        )
        .execute();
    });
  }

  /** Sends dead letters again; returns how many. An empty list means all. */
  async resend(webhookId: string, ids: readonly string[]): Promise<number> {
    let query = this.db
      .updateTable('webhook_deliveries')
      .set({ state: 'pending', attempts: 0, next_time_ms: this.now() })
      .where('webhook_id', '=', webhookId)
      .where('state', '=', 'dead');
    if (ids.length > 0) query = query.where('id', 'in', ids);
    const { numUpdatedRows } = await query.executeTakeFirst();
    if (numUpdatedRows > 0n) this.feed.announce({ topic: 'webhook', id: webhookId });
    return Number(numUpdatedRows);
  }

  /** One page, oldest first; `next` is null at the end. */
  async deliveries(page: {
    webhookId: string;
    state: 'pending' | 'dead' | null;
    after: DeliveryCursor | null;
    deliveriesMax: number;
  }): Promise<{ deliveries: Omit<WebhookDeliveryRow, 'body'>[]; next: DeliveryCursor | null }> {
    const { webhookId, state, after, deliveriesMax } = page;
    let query = this.db
      .selectFrom('webhook_deliveries')
      .select(['id', 'webhook_id', 'job_id', 'sequence', 'kind', 'state', 'attempts', 'next_time_ms'])
      .select(['failure', 'create_time_ms'])
      .where('webhook_id', '=', webhookId)
      .orderBy('create_time_ms')
      .orderBy('id')
      .limit(deliveriesMax + 1);
    if (state !== null) query = query.where('state', '=', state);
    if (after !== null)
      query = query.where(({ eb, refTuple, tuple }) =>
        eb(refTuple('create_time_ms', 'id'), '>', tuple(after.createTimeMs, after.id)),
      );
    const rows = await query.execute();
    const deliveries = rows.slice(0, deliveriesMax);
    const last = rows.length > deliveriesMax ? deliveries.at(-1) : undefined;
    return {
      deliveries,
      next: last === undefined ? null : { createTimeMs: last.create_time_ms, id: last.id },
    };
  }

  private async counts(ids: readonly string[]): Promise<Map<string, number>> {
    if (ids.length === 0) return new Map();
    const rows = await this.db
      .selectFrom('webhook_deliveries')
      .select(({ fn }) => ['webhook_id', 'state', fn.countAll<number>().as('count')])
      .where('webhook_id', 'in', ids)
      .groupBy(['webhook_id', 'state'])
      .execute();
    return new Map(rows.map(({ webhook_id, state, count }) => [`${webhook_id} ${state}`, Number(count)]));
  }
}

function isSame(found: Webhook, wanted: NewWebhook): boolean {
  const text = ({ url, secret, eventKinds, labels }: NewWebhook): string =>
    JSON.stringify([url, secret, eventKinds, Object.entries(labels).sort()]);
  return text(found) === text(wanted);
}
