import { createHash } from 'node:crypto';
import { sql } from 'kysely';
import type { Database } from './database.js';

/** PostgreSQL does not let this user ask, or is one that does not say. */
const unknownHistory = new Set(['42501', '42883', '0A000']);

/**
 * Which history of a store its numbers are of. A backup that is restored is another one, and so is a database that was restored or
 * promoted by its own means: what was numbered before may be lost, and the numbers be given to other events.
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

  /** Reads it again: whenever the way to the database was broken, since only then it may be another. */
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
