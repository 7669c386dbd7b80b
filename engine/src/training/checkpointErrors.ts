import { EngineError } from '../engineError.js';

/** A checkpoint does not match its manifest. Use the one before it. */
export class CheckpointCorrupt extends EngineError {
  constructor(
    readonly path: string,
    /** File within the checkpoint. */
    readonly file: string,
    readonly expected: string,
    readonly found: string,
  ) {
    super('CHECKPOINT_CORRUPT', `Checkpoint ${path}: ${file} should be ${expected} but is ${found}`);
  }
}

/** A later version of the engine wrote this checkpoint. */
export class CheckpointUnknownFormat extends EngineError {
  constructor(path: string, known: number, found: number) {
    super(
      'CHECKPOINT_UNKNOWN_FORMAT',
      `Checkpoint ${path} has format ${found}; this engine reads format ${known}`,
    );
  }
}

/** There is too little space to write a checkpoint safely; nothing was written and the run can continue. */
export class CheckpointNoSpace extends EngineError {
  constructor(
    readonly path: string,
    readonly neededBytes: number,
    readonly freeBytes: number,
    options?: ErrorOptions,
  ) {
    super(
      'CHECKPOINT_NO_SPACE',
      `No space for a checkpoint in ${path}: ${neededBytes} bytes must be free (twice its size and a reserve), ${freeBytes} are`,
      options,
    );
  }
}
