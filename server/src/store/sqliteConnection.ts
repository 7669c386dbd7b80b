import { DatabaseSync, type StatementSyncInstance } from '@photostructure/sqlite';

/** Limit of prepared statements. There are few texts, except that an insert has one for each number of rows. */
const statementsMax = 500;

type Row = Record<string, unknown>;

/**
 * A SQLite file. Errors of SQLite have the name of their primary result code as `code`: SQLITE_IOERR, SQLITE_FULL and so on.
 *
 * The library frees a statement only when it is garbage-collected, and a connection with open statements keeps its lock after `close`. So
 * each text is prepared once; who needs the lock to be free after `close` first leaves the exclusive mode.
 */
export class SqliteConnection {
  private readonly connection: InstanceType<typeof DatabaseSync>;
  private readonly statements = new Map<string, SqliteStatement>();

  /** Opens the file, or creates it. Waits as long as the timeout for a lock that another process holds. */
  constructor(file: string, { busyTimeoutMs }: { busyTimeoutMs: number }) {
    this.connection = withCodes(() => new DatabaseSync(file, { timeout: busyTimeoutMs }));
  }

  get inTransaction(): boolean {
    return this.connection.isTransaction;
  }

  prepare(text: string): SqliteStatement {
    let statement = this.statements.get(text);
    if (statement === undefined) {
      if (this.statements.size >= statementsMax) this.statements.delete(this.statements.keys().next().value!);
      statement = new SqliteStatement(withCodes(() => this.connection.prepare(text)));
      this.statements.set(text, statement);
    }
    return statement;
  }

  /** Executes several statements, without parameters or results. */
  exec(text: string): void {
    withCodes(() => this.connection.exec(text));
  }

  /** The first value of the first row that a statement returns; undefined if it returns none. */
  first(text: string): unknown {
    return Object.values(this.prepare(text).all()[0] ?? {})[0];
  }

  close(): void {
    this.statements.clear();
    this.connection.close();
  }
}

/** As Kysely expects it. */
export class SqliteStatement {
  /** Whether it returns rows. */
  readonly reader: boolean;

  constructor(private readonly statement: StatementSyncInstance) {
    this.reader = statement.columns().length > 0;
  }

  all(parameters: readonly unknown[] = []): Row[] {
    return withCodes(() => this.statement.all(...parameters)) as Row[];
  }

  run(parameters: readonly unknown[] = []): { changes: number; lastInsertRowid: number | bigint } {
    return withCodes(() => this.statement.run(...parameters));
  }

  iterate(parameters: readonly unknown[] = []): IterableIterator<Row> {
    return this.all(parameters)[Symbol.iterator]();
  }
}

function withCodes<T>(act: () => T): T {
  try {
    return act();
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ERR_SQLITE_ERROR')
      error.code = codeOf(error);
    throw error;
  }
}

/** Texts of sqlite3_errstr. */
const codesByText: Record<string, string> = {
  'access permission denied': 'SQLITE_PERM',
  'database is locked': 'SQLITE_BUSY',
  'database table is locked': 'SQLITE_LOCKED',
  'out of memory': 'SQLITE_NOMEM',
  'attempt to write a readonly database': 'SQLITE_READONLY',
  'disk I/O error': 'SQLITE_IOERR',
  'database disk image is malformed': 'SQLITE_CORRUPT',
  'database or disk is full': 'SQLITE_FULL',
  'unable to open database file': 'SQLITE_CANTOPEN',
  'locking protocol': 'SQLITE_PROTOCOL',
  'file is not a database': 'SQLITE_NOTADB',
};

/** `all` of the library gives an error's text alone, all other methods its code, too. */
function codeOf(error: Error): string {
  const { sqliteCodeName } = error as { sqliteCodeName?: unknown };
  if (typeof sqliteCodeName === 'string') return sqliteCodeName;
  if (/\bconstraint failed\b/i.test(error.message)) return 'SQLITE_CONSTRAINT';
  return codesByText[error.message] ?? 'SQLITE_ERROR';
}
