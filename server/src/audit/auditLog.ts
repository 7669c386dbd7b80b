import { appendFile } from 'node:fs/promises';
import type { Logger } from 'pino';
import { cutText } from '../errors.js';
import type { Database } from '../store/database.js';
import type { AuditRow } from '../store/schema.js';
import { timedId } from '../store/timedId.js';

export type AuditEntry = Omit<AuditRow, 'id' | 'time_ms'>;

export interface AuditCursor {
  timeMs: number;
  id: string;
}

/** Longer than any valid name. */
const textLengthMax = 256;

/** Who changed what, from where and with what result: rows of the store, and lines of a file if the settings name one. */
export class AuditLog {
  constructor(
    private readonly db: Database,
    private readonly log: Logger,
    private readonly file: string,
  ) {}

  /** Resolves when it is stored. If this fails, the change still stands, and the entry goes to the server's log. */
  async note(asked: AuditEntry): Promise<void> {
    const timeMs = Date.now();
    // A refused call may contain texts of any length: they must not fill the disk.
    const entry = Object.fromEntries(
      Object.entries(asked).map(([column, text]) => [column, cutText(text, textLengthMax)]),
    ) as unknown as AuditEntry;
    try {
      if (this.file !== '')
        await appendFile(
          this.file,
          `${JSON.stringify({ time: new Date(timeMs).toISOString(), ...entry })}\n`,
          {
            mode: 0o600,
          },
        );
      await this.db
        .insertInto('audit')
        .values({ id: timedId('audit', timeMs), time_ms: timeMs, ...entry })
        .execute();
    } catch (error) {
      this.log.error({ err: error, audit: entry }, 'A change could not be written to the audit log');
    }
  }

  /** One page, newest first; `next` is null at the end. */
  async list(page: {
    after: AuditCursor | null;
    entriesMax: number;
    tenant: string;
    caller: string;
  }): Promise<{ entries: AuditRow[]; next: AuditCursor | null }> {
    const { after, entriesMax, tenant, caller } = page;
    let query = this.db
      .selectFrom('audit')
      .selectAll()
      .orderBy('time_ms', 'desc')
      .orderBy('id', 'desc')
      .limit(entriesMax + 1);
    if (tenant !== '') query = query.where('tenant', '=', tenant);
    if (caller !== '') query = query.where('caller', '=', caller);
    if (after !== null)
      query = query.where(({ eb, refTuple, tuple }) =>
        eb(refTuple('time_ms', 'id'), '<', tuple(after.timeMs, after.id)),
      );
    const rows = await query.execute();
    const entries = rows.slice(0, entriesMax);
    const last = rows.length > entriesMax ? entries.at(-1) : undefined;
    return { entries, next: last === undefined ? null : { timeMs: last.time_ms, id: last.id } };
  }
}
