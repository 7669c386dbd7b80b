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
      statement = new SqliteStatement(
        withCodes(() => this.connection.prepare(text)),
        text,
      );
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

  /** Whether integers are read as bigints. That is slow, but the library refuses to read a number that is not exact. */
  private readsBigInts = false;

  constructor(
    private readonly statement: StatementSyncInstance,
    text: string,
  ) {
    this.reader = statement.columns().length > 0;
    // Only what changes nothing may be done a second time.
    if (this.reader && !/^(select|pragma)\b/i.test(text)) this.readBigInts();
  }

  /** Integers are numbers, rounded beyond 2^53. */
  all(parameters: readonly unknown[] = []): Row[] {
    refuseNul(parameters);
    if (!this.readsBigInts) {
      try {
        return withCodes(() => this.statement.all(...parameters)) as Row[];
      } catch (error) {
        if (!(error instanceof Error && error.message.startsWith(tooLarge))) throw error;
        this.readBigInts();
      }
    }
    const rows = withCodes(() => this.statement.all(...parameters)) as Row[];
    for (const row of rows)
      for (const [name, value] of Object.entries(row))
        if (typeof value === 'bigint') row[name] = Number(value);
    return rows;
  }

  run(parameters: readonly unknown[] = []): { changes: number; lastInsertRowid: number } {
    refuseNul(parameters);
    const { changes, lastInsertRowid } = withCodes(() => this.statement.run(...parameters));
    return { changes: Number(changes), lastInsertRowid: Number(lastInsertRowid) };
  }

  iterate(parameters: readonly unknown[] = []): IterableIterator<Row> {
    return this.all(parameters)[Symbol.iterator]();
  }

  private readBigInts(): void {
    this.readsBigInts = true;
    this.statement.setReadBigInts(true);
  }
}

/** Begin of the library's message for an integer that a number does not hold exactly. */
const tooLarge = 'Value is too large to be represented as a JavaScript number';

/** The library would end a text at its first NUL. PostgreSQL refuses such a text, too. */
function refuseNul(parameters: readonly unknown[]): void {
  for (const value of parameters)
    if (typeof value === 'string' && value.includes('\0'))
      throw new TypeError(`The store takes no text with NUL, such as ${JSON.stringify(value.slice(0, 100))}`);
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
  'string or blob too big': 'SQLITE_TOOBIG',
};

/** `all` of the library gives an error's text alone, all other methods its code, too. */
function codeOf(error: Error): string {
  const { sqliteCodeName } = error as { sqliteCodeName?: unknown };
  if (typeof sqliteCodeName === 'string') return sqliteCodeName;
  if (/\bconstraint failed\b|^cannot store \w+ value in /i.test(error.message)) return 'SQLITE_CONSTRAINT';
  return codesByText[error.message] ?? 'SQLITE_ERROR';
}
