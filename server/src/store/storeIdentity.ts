import { createHash } from 'node:crypto';
import { sql } from 'kysely';
import type { Database } from './database.js';

/** PostgreSQL does not allow this user to ask, or does not support the question. */
const unknownHistory = new Set(['42501', '42883', '0A000']);

/**
 * Identifies the history of a store that sequence numbers belong to. A restored backup has another history, and so does a database that was
 * restored or promoted by its own means: events may be lost, and their numbers given to others.
 */
export class StoreIdentity {
  private present: string;

  constructor(
    private readonly db: Database,
    private readonly incarnation: string,
    private readonly isShared: boolean,
  ) {
    this.present = incarnation;
  }

  get id(): string {
    return this.present;
  }

  /** Reads it again. Called whenever the connection to the database was lost, since only then it may be another one. */
  async look(): Promise<void> {
    if (!this.isShared) return;
    try {
      const { rows } = await sql<{ system: string; timeline: string }>`
        select (select system_identifier::text from pg_control_system()) as system,
          left(pg_walfile_name(pg_current_wal_lsn()), 8) as timeline`.execute(this.db);
      const { system, timeline } = rows[0]!;
      const history = `${this.incarnation} ${system} ${timeline}`;
      this.present = createHash('sha256').update(history).digest('hex').slice(0, 32);
    } catch (error) {
      if (!unknownHistory.has((error as { code?: string }).code ?? '')) throw error;
    }
  }
}
