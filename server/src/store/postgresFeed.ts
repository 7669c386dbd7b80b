import { sql } from 'kysely';
import type { Client } from 'pg';
import { randomUUID } from 'node:crypto';
import { LocalFeed, type Change, type ChangeFeed } from './changeFeed.js';
import type { Database } from './database.js';

const channel = 'relora_changes';
const reconnectMs = 1000;

/**
 * The feed of a store that several servers share: LISTEN and NOTIFY. A broken connection loses notifications, so each server also reads
 * again every `pollMs`, and as soon as a connection is back.
 */
export class PostgresFeed implements ChangeFeed {
  private readonly local = new LocalFeed();
  /** Marks our own notifications, which were already announced here. */
  private readonly origin = randomUUID();
  /** Changes to send, by subject: the later one of two is enough. */
  private readonly unsent = new Map<string, Change>();
  private sending: Promise<void> | undefined;
  private client: Client | undefined;
  private isClosed = false;
  private readonly poll: NodeJS.Timeout;
  private reconnect: NodeJS.Timeout | undefined;

  private constructor(
    private readonly url: string,
    private readonly db: Database,
    pollMs: number,
    private readonly onConnected: () => Promise<void>,
  ) {
    this.poll = setInterval(() => this.local.announce(null), pollMs);
  }

  /** @param onConnected called whenever a connection is made, before any listener is notified */
  static async open(
    url: string,
    db: Database,
    pollMs: number,
    onConnected: () => Promise<void>,
  ): Promise<PostgresFeed> {
    const feed = new PostgresFeed(url, db, pollMs, onConnected);
    await feed.connect();
    return feed;
  }

  announce(change: Change): void {
    this.local.announce(change);
    this.unsent.set(`${change.topic} ${change.id}`, change);
    this.sending ??= this.send().finally(() => (this.sending = undefined));
  }

  listen(listener: (change: Change | null) => void): () => void {
    return this.local.listen(listener);
  }

  async close(): Promise<void> {
    this.isClosed = true;
    clearInterval(this.poll);
    clearTimeout(this.reconnect);
    await this.sending;
    await this.client?.end().catch(() => {});
  }

  private async send(): Promise<void> {
    while (this.unsent.size > 0) {
      const changes = [...this.unsent.values()];
      this.unsent.clear();
      const texts = changes.map((change) => JSON.stringify({ origin: this.origin, change }));
      // If this fails the changes are lost, as any notification may be: the other servers poll.
      await sql`select pg_notify(${channel}, text) from unnest(${texts}::text[]) as text`
        .execute(this.db)
        .catch(() => {});
    }
  }

  private async connect(): Promise<void> {
    const { default: pg } = await import('pg');
    const client = new pg.Client({
      connectionString: this.url,
      application_name: 'relora-server feed',
      keepAlive: true,
    });
    const retry = (): void => {
      if (this.isClosed || this.client !== client) return;
      this.client = undefined;
      this.reconnect = setTimeout(() => void this.connect(), reconnectMs);
    };
    this.client = client;
    client.on('error', () => {}); // 'end' follows
    client.on('end', retry);
    client.on('notification', ({ payload }) => {
      const { origin, change } = JSON.parse(payload!) as { origin: string; change: Change };
      if (origin !== this.origin) this.local.announce(change);
    });
    try {
      await client.connect();
      await client.query(`listen ${channel}`);
      await this.onConnected();
      this.local.announce(null); // changes may have been missed meanwhile
    } catch {
      retry();
      await client.end().catch(() => {});
    }
  }
}
