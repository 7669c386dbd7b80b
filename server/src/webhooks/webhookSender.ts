import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { rootCertificates } from 'node:tls';
import type { Transaction } from 'kysely';
import type { Config } from '../config.js';
import type { Metrics } from '../metrics/metrics.js';
import { JournalFollower, type FollowerParts, type Taken } from '../jobs/journalFollower.js';
import type { Job, JobEvent } from '../jobs/job.js';
import type { Schema, WebhookDeliveryRow } from '../store/schema.js';
import { isStoreBroken } from '../store/storeError.js';
import { timedId } from '../store/timedId.js';
import { eventMessage, testMessage, type EventJson } from './eventMessage.js';
import { post, type PostResult } from './post.js';
import type { Reachable } from './reachable.js';
import { signedHeaders, type Webhook } from './webhook.js';
import { readerOf, type WebhookStore } from './webhookStore.js';

export interface SenderParts extends FollowerParts {
  webhooks: WebhookStore;
  reachable: Reachable;
  metrics: Metrics;
  config: Config;
  toJson: EventJson;
}

/** Pauses between attempts grow by this factor, up to the longest. */
const retryFactor = 4;
const retryMsMax = 6 * 3_600_000;
/** Longest pause between two messages to a failing receiver, whatever waits for it. */
const restMsMax = 300_000;

/** Sends the events of all webhooks of the store, those of each on the one server that has its lease. */
export class WebhookSender {
  private readonly lines = new Map<string, DeliveryLine>();
  private readonly stopping = new AbortController();
  private stopListening: (() => void) | undefined;
  private looking: Promise<void> | undefined;
  private isLookWanted = false;

  constructor(private readonly parts: SenderParts) {}

  start(): void {
    this.stopListening = this.parts.feed.listen((change) => {
      if (change === null || change.topic === 'webhook') this.look(change?.id);
    });
    this.look();
  }

  async stop(): Promise<void> {
    this.stopListening?.();
    this.stopping.abort();
    await this.looking;
    await Promise.all([...this.lines.values()].map(async (line) => await line.stop()));
  }

  /** Sends a message that is not an event, once. */
  async test(webhook: Webhook, signal: AbortSignal): Promise<PostResult & { id: string; seconds: number }> {
    const id = timedId('msg', Date.now());
    const begunMs = performance.now();
    const result = await send(this.parts, webhook, { id, body: testMessage(Date.now()) }, signal);
    return { ...result, id, seconds: (performance.now() - begunMs) / 1000 };
  }

  /** Begins lines for new webhooks, and ends those of deleted ones. */
  private look(changed?: string): void {
    if (changed !== undefined) this.lines.get(changed)?.wake();
    this.isLookWanted = true;
    this.looking ??= this.lookAll().finally(() => (this.looking = undefined));
  }

  private async lookAll(): Promise<void> {
    while (this.isLookWanted && !this.stopping.signal.aborted) {
      this.isLookWanted = false;
      try {
        const all = await this.parts.webhooks.all();
        if (this.stopping.signal.aborted) return;
        // A webhook that was deleted and created again under its name is another one.
        const keys = new Map(all.map((webhook) => [webhook.id, webhook]));
        for (const [id, line] of this.lines) {
          if (keys.get(id)?.createTimeMs === line.webhook.createTimeMs) continue;
          this.lines.delete(id);
          await line.stop();
        }
        for (const webhook of all) {
          if (this.lines.has(webhook.id)) continue;
          const line = new DeliveryLine(this.parts, webhook);
          this.lines.set(webhook.id, line);
          line.start();
        }
      } catch (error) {
        this.parts.log.error({ err: error }, 'Webhooks could not be read');
        if (isStoreBroken(error)) this.parts.onStoreFailure(error);
      }
    }
  }
}

/**
 * One webhook: events become deliveries in the transaction that stores the position in the journal, and deliveries are sent until they are
 * accepted.
 */
class DeliveryLine {
  private readonly follower: JournalFollower;
  private readonly stopping = new AbortController();
  private held: Promise<void> | undefined;
  private isHeld = false;
  private wakeUp: () => void = () => {};
  private isWoken = false;

  constructor(
    private readonly parts: SenderParts,
    readonly webhook: Webhook,
  ) {
    const reading = {
      id: readerOf(webhook.id),
      tenant: webhook.tenant,
      withSteps: webhook.eventKinds.includes('step'),
      pauseMs: 0,
      take: async (job: Job, events: readonly JobEvent[]) => await this.take(job, events),
    };
    this.follower = new JournalFollower(parts, reading, (epoch) => {
      this.isHeld = epoch !== null;
      if (this.isHeld) this.held ??= this.sendAll().finally(() => (this.held = undefined));
      else this.wake();
    });
  }

  start(): void {
    this.follower.start();
  }

  async stop(): Promise<void> {
    this.stopping.abort();
    this.wake();
    await this.follower.stop();
    await this.held;
  }

  /** Call this when there may be something to send. */
  wake(): void {
    this.isWoken = true;
    this.wakeUp();
  }

  private async take(job: Job, events: readonly JobEvent[]): Promise<Taken> {
    const { webhooks, config, toJson } = this.parts;
    const { id, eventKinds, labels } = this.webhook;
    const isWanted = Object.entries(labels).every(
      ([key, value]) => Object.hasOwn(job.labels, key) && job.labels[key] === value,
    );
    const wanted = isWanted
      ? events.filter(({ body }) => (eventKinds as readonly string[]).includes(body.kind))
      : [];
    if (wanted.length === 0) return 'nothing';
    // Messages for an unreachable receiver do not fill the disk: the journal keeps the events.
    if ((await webhooks.pendingCount(id)) >= config.webhookPendingMax) return 'later';
    const nowMs = Date.now();
    const deliveries = wanted.map((event) => ({
      id: timedId('msg', nowMs),
      webhook_id: id,
      job_id: job.id,
      sequence: event.sequence,
      kind: event.body.kind,
      body: eventMessage(job, event, toJson, config.webhookBodyBytesMax),
      state: 'pending' as const,
      attempts: 0,
      next_time_ms: nowMs,
      failure: '',
      create_time_ms: nowMs,
    }));
    return {
      state: '',
      work: async (trx: Transaction<Schema>) => await webhooks.add(trx, deliveries),
      after: () => this.wake(),
    };
  }

  private async sendAll(): Promise<void> {
    let failures = 0;
    while (this.isHeld && !this.stopping.signal.aborted) {
      this.isWoken = false;
      try {
        const next = await this.parts.webhooks.nextOf(this.webhook.id);
        const waitMs = next === undefined ? Infinity : next.next_time_ms - Date.now();
        if (next === undefined || waitMs > 0) await this.wait(waitMs);
        else failures = (await this.deliver(next)) ? 0 : failures + 1;
      } catch (error) {
        if (this.stopping.signal.aborted) return;
        this.parts.log.error({ err: error, webhook: this.webhook.id }, 'A webhook could not be served');
        if (isStoreBroken(error)) this.parts.onStoreFailure(error);
        failures++;
      }
      const baseMs = this.parts.config.webhookRetrySeconds * 1000;
      if (failures > 0) await this.rest(Math.min(restMsMax, baseMs * 2 ** (failures - 1)));
    }
  }

  /** Returns whether it was accepted. */
  private async deliver(delivery: WebhookDeliveryRow): Promise<boolean> {
    const { webhooks, metrics, config, log } = this.parts;
    const { signal } = this.stopping;
    const { failure } = await send(this.parts, this.webhook, delivery, signal);
    if (signal.aborted && failure !== '') return false;
    if (failure === '') {
      await webhooks.delivered(delivery, Date.now());
      return true;
    }
    const attempts = delivery.attempts + 1;
    const isDead = attempts >= config.webhookAttemptsMax;
    const delayMs = Math.min(retryMsMax, config.webhookRetrySeconds * 1000 * retryFactor ** (attempts - 1));
    // Randomized, so that not all are sent at once when a receiver is back.
    const nextTimeMs = Date.now() + delayMs * (1 + Math.random() / 10);
    await webhooks.failed(delivery, failure, isDead ? null : Math.round(nextTimeMs), config.webhookDeadMax);
    if (isDead) metrics.webhookDead.inc();
    const { id: webhook } = this.webhook;
    if (isDead) log.warn({ webhook, messageId: delivery.id, failure }, 'A message of a webhook was given up');
    return false;
  }

  /** Waits until there may be something to send. */
  private async wait(ms: number): Promise<void> {
    if (this.isWoken || this.stopping.signal.aborted) return;
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.wakeUp = resolve;
      if (Number.isFinite(ms)) timer = setTimeout(resolve, Math.min(ms, 2 ** 31 - 1));
    });
    clearTimeout(timer);
  }

  /** Pauses, however much there is to send. */
  private async rest(ms: number): Promise<void> {
    await sleep(ms, undefined, { signal: this.stopping.signal }).catch(() => {});
  }
}

async function send(
  { reachable, config, metrics }: SenderParts,
  { url, secret }: Webhook,
  message: { id: string; body: string },
  signal: AbortSignal,
): Promise<PostResult> {
  const headers = signedHeaders(secret, message, Date.now());
  const ca =
    config.webhookCa === '' ? undefined : [...rootCertificates, await readFile(config.webhookCa, 'utf8')];
  const begunMs = performance.now();
  const result = await post(new URL(url), headers, message.body, {
    reachable,
    timeoutMs: config.webhookSeconds * 1000,
    ca,
    signal,
  });
  metrics.webhookDuration.observe((performance.now() - begunMs) / 1000);
  if (result.failure === '') metrics.webhookSent.inc();
  else metrics.webhookFailed.inc();
  return result;
}
