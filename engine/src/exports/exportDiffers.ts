import { EngineError } from '../engineError.js';

/** The files of an export, read back, differ from the model that was exported. */
export class ExportDiffers extends EngineError {
  constructor(
    readonly subject: string,
    readonly expected: string,
    readonly found: string,
  ) {
    super('EXPORT_DIFFERS', `${subject}: expected ${expected}, found ${found}`);
  }
}
