/** Where the client logs what it does by itself. A pino logger fits, and so does `console`. */
export interface Logger {
  /** Each call with its outcome and duration. */
  debug(fields: object, message: string): void;
  /** Problems that were handled: a retried call, a reopened stream. */
  warn(fields: object, message: string): void;
}

export const silentLogger: Logger = { debug: () => {}, warn: () => {} };
