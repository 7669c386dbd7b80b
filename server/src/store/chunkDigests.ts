import { sql, type RawBuilder, type Transaction } from 'kysely';
import type { Database } from './database.js';
import type { Schema } from './schema.js';
import { isPassing } from './storeError.js';

/** Rows per insert: keeps it below SQLite's limit of parameters. */
const rowsMax = 1000;

/** CRC32C of the chunks of blobs, stored once when they are first computed. A cache: missing ones are computed again. */
export class ChunkDigests {
  constructor(private readonly db: Database) {}

  /** Undefined unless they are known for all chunks. */
  async find(blob: string, chunkCount: number): Promise<number[] | undefined> {
    const rows = await this.db
      .selectFrom('blob_chunks')
      .select('crc32c')
      .where('blob', '=', blob)
      .orderBy('chunk_index')
      .execute();
    return rows.length === chunkCount ? rows.map(({ crc32c }) => crc32c) : undefined;
  }

  async write(blob: string, crcs: readonly number[]): Promise<void> {
    const rows = crcs.map((crc32c, index) => ({ blob, chunk_index: index, crc32c }));
    try {
      for (let start = 0; start < rows.length; start += rowsMax)
        await this.db
          .insertInto('blob_chunks')
          .values(rows.slice(start, start + rowsMax))
          .onConflict((conflict) => conflict.doNothing())
          .execute();
    } catch (error) {
      if (!isPassing(error)) throw error; // they are computed again the next time
    }
  }
}

/** Condition: the name in a column is this one or below it. */
export function isAtOrBelow(column: string, name: string): RawBuilder<boolean> {
  const ref = sql.ref(column);
  // `0` follows `/`.
  return sql`(${ref} = ${name} or (${ref} > ${`${name}/`} and ${ref} < ${`${name}0`}))`;
}

/**
 * Marks the blob of a name and those below it for deletion, in the transaction that deletes the rows they belong to. doPurges deletes them,
 * even after a crash, and possibly late: only for names that are never given again.
 */
export async function notePurge(trx: Transaction<Schema>, prefix: string): Promise<void> {
  await trx.deleteFrom('blob_chunks').where(isAtOrBelow('blob', prefix)).execute();
  await trx.deleteFrom('blob_files').where(isAtOrBelow('folder', prefix)).execute();
  await trx
    .insertInto('purges')
    .values({ prefix })
    .onConflict((conflict) => conflict.doNothing())
    .execute();
}
