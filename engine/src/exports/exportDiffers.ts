import { EngineError } from '../engineError.js';

/** The files of an export, read back, are not the model that was exported. */
export class ExportDiffers extends EngineError {
  constructor(
    readonly subject: string,
    readonly expected: string,
    readonly found: string,
  ) {
    super('EXPORT_DIFFERS', `${subject}: expected ${expected}, found ${found}`);
  }
}
