import { EngineError } from '../engineError.js';

/** A format cannot represent the model; nothing usable was written. */
export class ExportImpossible extends EngineError {
  constructor(
    readonly format: string,
    readonly expected: string,
    readonly found: string,
  ) {
    super('EXPORT_IMPOSSIBLE', `${format}: expected ${expected}, found ${found}`);
  }
}
