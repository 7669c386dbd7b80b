/** Where the client reports what it does by itself. A pino logger is one, and so is `console`. */
export interface Logger {
  /** Each call with its outcome and time. */
  debug(fields: object, message: string): void;
  /** What went wrong on the way and is mended: a call that is repeated, a stream that is opened again. */
  warn(fields: object, message: string): void;
}

export const silentLogger: Logger = { debug: () => {}, warn: () => {} };
