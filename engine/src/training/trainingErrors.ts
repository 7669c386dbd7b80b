import { EngineError } from '../engineError.js';

/** Too many steps had a loss or a gradient that was not finite. Weights and the last checkpoint are usable. */
export class TrainingDiverged extends EngineError {
  constructor(
    readonly step: number,
    readonly loss: number,
    readonly gradientNorm: number,
    readonly skippedStepCount: number,
  ) {
    super(
      'TRAINING_DIVERGED',
      `Step ${step} has loss ${loss} and gradient norm ${gradientNorm}; it is the ${ordinal(skippedStepCount)} step that ` +
        `could not be applied, more than optimizer.nonfiniteStepCountMax allows. Lower the learning rate, or look at the data`,
    );
  }
}

/** A restart did not reset all moments of A and B. The last checkpoint is usable. */
export class MomentsNotZero extends EngineError {
  constructor(
    readonly restart: number,
    readonly zeroedRatio: number,
  ) {
    super(
      'MOMENTS_NOT_ZERO',
      `Restart ${restart} was to set all moments of the adapters to zero, and ${zeroedRatio} of them are: they are not finite, or memory is faulty`,
    );
  }
}

/** The run asks for something that its data set or its checkpoint cannot provide. */
export class RunMismatch extends EngineError {
  constructor(
    readonly field: string,
    readonly expected: string,
    readonly found: string,
  ) {
    super('RUN_MISMATCH', `${field}: expected ${expected}, found ${found}`);
  }
}

/** The files of the base weights have changed. */
export class BaseWeightsChanged extends EngineError {
  constructor(
    readonly path: string,
    readonly expected: string,
    readonly found: string,
  ) {
    super(
      'BASE_WEIGHTS_CHANGED',
      `The base weights at ${path} are not what they were: expected ${expected}, found ${found}`,
    );
  }
}

function ordinal(count: number): string {
  const suffixes: Record<number, string> = { 1: 'st', 2: 'nd', 3: 'rd' };
  const isTeen = count % 100 >= 11 && count % 100 <= 13;
  return `${count}${isTeen ? 'th' : (suffixes[count % 10] ?? 'th')}`;
}
