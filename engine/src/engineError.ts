/**
 * An expected failure. `reason` is stable and in UPPER_SNAKE_CASE, so that callers can act on it and store it; the message is for people.
 */
export class EngineError extends Error {
  constructor(
    readonly reason: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
    this.name = new.target.name;
  }
}
