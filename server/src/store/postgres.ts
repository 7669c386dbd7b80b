import { Kysely, PostgresDialect, sql, type Transaction } from 'kysely';
import type { Pool } from 'pg';
import type { DatabaseOptions } from './database.js';
import { applicationId, migrations } from './migrations.js';
import type { Schema } from './schema.js';
import { StoreUnusable } from './storeError.js';

/** Connections per server: transactions are short, so a few serve many calls. */
const connectionsMax = 8;
const connectTimeoutMs = 10_000;
/** Our statements are all faster: one that takes longer waits for a lock that is never released. */
const statementTimeoutMs = 60_000;

/** Database settings without which a commit would not be durable. */
const durable = { fsync: 'on', full_page_writes: 'on' } as const;

/** Types whose numbers arrive as text by default: int8, and numeric for a sum of int8. Ours are below 2^53. */
const wholeNumberTypes = new Set([20, 1700]);

/** Opens the store in the first schema of the connection's search path; see openDatabase. */
export async function openPostgres(
  url: string,
  { onStatement }: Omit<DatabaseOptions, 'url'> = {},
): Promise<Kysely<Schema>> {
  // Imported only here, so that a store in a file does not load a client for PostgreSQL.
  const { default: pg } = await import('pg');
  const pool: Pool = new pg.Pool({
    connectionString: url,
    max: connectionsMax,
    connectionTimeoutMillis: connectTimeoutMs,
    application_name: 'relora-server',
    types: {
      getTypeParser: (type: number, format?: 'text' | 'binary') =>
        wholeNumberTypes.has(type) ? readNumber : pg.types.getTypeParser(type, format as 'text'),
    },
  });
  // An unused connection that ends is not an error: the next statement gets another.
  pool.on('error', () => {});
  pool.on('connect', (client) => {
    // If it ends within a transaction, between two statements, the next statement fails. Without a listener, this event would end the
    // process.
    client.on('error', () => {});
    client
      .query(
        `set synchronous_commit = on; set statement_timeout = ${statementTimeoutMs}; ` +
          `set idle_in_transaction_session_timeout = ${statementTimeoutMs}`,
      )
      .catch(() => {}); // the statement that the connection was opened for fails by itself
  });

  const db = new Kysely<Schema>({
    dialect: new PostgresDialect({ pool }),
    ...(onStatement ? { log: (event) => onStatement(event.queryDurationMillis / 1000) } : {}),
  });
  try {
    await requireDurable(db);
    await db.transaction().execute(migrate);
  } catch (error) {
    await db.destroy();
    if (error instanceof StoreUnusable || !(error instanceof Error)) throw error;
    throw new StoreUnusable(`${withoutPassword(url)} cannot be used (${error.message})`, { cause: error });
  }
  return db;
}

/** The schema of SQLite's steps in PostgreSQL's types: milliseconds and bytes do not fit into int4, and text is sorted by its bytes. */
export function toPostgres(statements: string): string {
  return statements
    .replaceAll(/\)\s*strict(, without rowid)?;/g, ');')
    .replaceAll(/\binteger\b/g, 'bigint')
    .replaceAll(/\breal\b/g, 'double precision')
    .replaceAll(/\btext\b/g, 'text collate "C"');
}

async function requireDurable(db: Kysely<Schema>): Promise<void> {
  for (const [name, wanted] of Object.entries(durable)) {
    const { rows } = await sql<{ value: string }>`select current_setting(${name}) as value`.execute(db);
    if (rows[0]?.value !== wanted)
      throw new StoreUnusable(
        `PostgreSQL has ${name} = ${rows[0]?.value}, which loses what was acknowledged: set it to ${wanted}`,
      );
  }
}

/** One transaction under a lock, so that only one of two servers that start at the same time does it. */
async function migrate(trx: Transaction<Schema>): Promise<void> {
  await sql`select pg_advisory_xact_lock(${applicationId})`.execute(trx);
  const { rows: found } = await sql<{ version: string | null; jobs: string | null }>`
    select to_regclass('schema_version')::text as version, to_regclass('jobs')::text as jobs`.execute(trx);
  if (!found[0]?.version) {
    if (found[0]?.jobs)
      throw new StoreUnusable(
        'The database has a table jobs of another program: name another database or schema',
      );
    await sql`create table schema_version (version bigint not null)`.execute(trx);
    await sql`insert into schema_version values (0)`.execute(trx);
  }
  const { rows } = await sql<{ version: number }>`select version from schema_version`.execute(trx);
  const version = rows[0]?.version ?? 0;
  if (version > migrations.length)
    throw new StoreUnusable(
      `The database has schema ${version}, this server knows ${migrations.length}: use the newer server that wrote it`,
    );
  for (const { postgres } of migrations.slice(version)) {
    const statements = toPostgres(postgres);
    if (statements.trim() !== '') await sql.raw(statements).execute(trx);
  }
  await sql`update schema_version set version = ${migrations.length}`.execute(trx);
}

function readNumber(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value)) throw new Error(`The store holds ${text}, which is beyond 2^53`);
  return value;
}

function withoutPassword(url: string): string {
  return url.replace(/\/\/([^:@/]*):[^@/]*@/, '//$1@');
}
