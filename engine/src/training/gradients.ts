import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Collective, Reach } from '../device/collective.js';
import type { Device, ResultBuffer } from '../device/device.js';
import { GradientBuffer } from '../model/gradientBuffer.js';
import { countTargets, type Llama } from '../model/llama.js';
import type { Parameter } from '../model/parameter.js';
import type { HeadPrecision, ReductionType } from '../plan/words.js';

/** The sequences of one step: inputs and targets are [sequences * time], row by row. */
export interface StepBatch {
  inputs: Int32Array;
  targets: Int32Array;
  /** Where, within its sequence, the document of each input begins. */
  documents: Int32Array;
}

export interface StepShape {
  step: number;
  sequenceLength: number;
  microBatchSequenceCount: number;
  /** Number of the step's first sequence in the run. */
  firstSequence: number;
  /** Seed of the dropout streams. */
  seed: number;
  /** StreamVersions.dropout */
  dropoutVersion: number;
  /** Recompute activations in the backward pass instead of keeping them. */
  recompute: boolean;
  headPrecision: HeadPrecision;
  /** Whether documents do not attend to each other. */
  maskDocuments: boolean;
  /** Type in which several members exchange gradients. */
  reductionType: ReductionType;
  /** Whether each member takes the step independently. */
  isApart: boolean;
}

/**
 * Gradient buffers of a step: the sum, and the current micro-batch. Reused from step to step as long as the same parameters are trained.
 */
export class StepGradients {
  private sum: GradientBuffer | null = null;
  private part: GradientBuffer | null = null;

  constructor(private readonly device: Device) {}

  /** Buffer for the sum over micro-batches. */
  sumFor(model: Llama): GradientBuffer {
    const parameters = model.trainable();
    if (this.sum === null || !this.sum.fits(parameters)) {
      this.dispose();
      this.sum = new GradientBuffer(this.device, parameters, model.backwardOrder());
    }
    return this.sum;
  }

  /** Buffer for a further micro-batch before it is added. */
  partFor(sum: GradientBuffer): GradientBuffer {
    return (this.part ??= sum.alike());
  }

  dispose(): void {
    this.sum?.dispose();
    this.part?.dispose();
    this.sum = this.part = null;
  }
}

/** What a step needs besides its batch. */
export interface StepMeans {
  model: Llama;
  gradients: StepGradients;
  result: ResultBuffer;
  collective: Collective;
}

/**
 * Computes the gradients of one step, summed over its micro-batches, and adds the losses to the result, which is cleared first. Each
 * micro-batch is weighted by its number of targets, so the result is that of one large batch. Yields to the event loop after each
 * micro-batch. Returns 'empty' if no target counts, so that there is nothing to learn, and 'aborted' if the signal is. If members take the
 * step independently, gradients are those of the member's own part; losses are always those of the whole batch.
 */
export async function accumulateGradients(
  { model, gradients, result, collective }: StepMeans,
  batch: StepBatch,
  shape: StepShape,
  signal: AbortSignal,
): Promise<GradientBuffer | 'empty' | 'aborted'> {
  const { device } = model;
  const { step, seed, sequenceLength, microBatchSequenceCount, recompute, headPrecision } = shape;
  const sum = gradients.sumFor(model);
  const own = ownSequences(batch.inputs.length / sequenceLength, collective);
  // All members know the targets of all, so they agree.
  const isEmpty = countTargets(batch.targets) === 0;
  let isWritten = false;
  device.clearResult(result);

  const micros = microBatches(batch, shape, own);
  // Fraction of the step's targets over which this member's gradients are a mean.
  const ownShare = shape.isApart ? micros.reduce((sum, { share }) => sum + share, 0) : 1;
  for (const [micro, { inputs, targets, share, documents }] of micros.entries()) {
    await nextTurn(); // handles messages and signals between micro-batches
    if (await collective.any(signal.aborted)) return 'aborted';
    if (isEmpty) continue;
    const isLast = micro === micros.length - 1;
    const first = own.first + micro * microBatchSequenceCount;
    const compute = (reach: Reach | null): void => {
      if (share === 0) {
        if (isLast && !isWritten) device.zero(sum.whole); // another member has targets
        return;
      }
      const target = isWritten ? gradients.partFor(sum) : sum;
      model.differentiate(
        { inputs, targets, documents, batch: inputs.length / sequenceLength, time: sequenceLength },
        target,
        result,
        {
          lossScale: share / ownShare,
          dropout: {
            ...{ version: shape.dropoutVersion, seed, step, micro },
            firstSequence: shape.firstSequence + first,
          },
          recompute,
          headPrecision,
          firstRow: first * sequenceLength,
          onFinal: reach && addWhenFinal(device, sum, target, reach),
        },
      );
      if (isWritten && reach === null) device.addInPlace(sum.whole, target.whole);
      isWritten = true;
    };
    if (isLast && !shape.isApart) await collective.sumWritten(sum.whole, shape.reductionType, compute);
    else compute(null);
  }
  if (isEmpty) return 'empty';
  if (collective.size === 1) return sum;
  const { loss, lossSum, rowLosses } = await device.readResult(result);
  const losses = await collective.sumNumbers([loss * ownShare, lossSum]);
  await collective.sumValues(rowLosses); // each row's loss is computed by exactly one member
  device.writeLosses(result, { loss: losses[0]!, lossSum: losses[1]!, rowLosses });
  return sum;
}

/**
 * Adds a micro-batch's gradients to the sum as soon as they are final, unless they are the sum, and reports how many values of the sum are.
 */
function addWhenFinal(device: Device, sum: GradientBuffer, micro: GradientBuffer, reach: Reach) {
  let index = 0;
  return (last: Parameter): void => {
    for (;;) {
      const { parameter, part, end } = sum.placed[index]!;
      if (micro !== sum) device.addInPlace(part, micro.placed[index]!.part);
      index++;
      if (parameter === last) return reach(end);
    }
  };
}

/** Range of sequences within a step. */
interface SequenceRange {
  first: number;
  count: number;
}

/** The part of the step's batch that a member computes; the number of members divides the batch. */
export function ownSequences(
  sequenceCount: number,
  { rank, size }: Pick<Collective, 'rank' | 'size'>,
): SequenceRange {
  const count = sequenceCount / size;
  return { first: rank * count, count };
}

export interface MicroBatch extends Omit<StepBatch, 'documents'> {
  /** Fraction of the step's targets. */
  share: number;
  /** Where the document of each position begins; null if documents attend to each other. */
  documents: Int32Array | null;
}

/** Splits the sequences of a step into micro-batches. */
export function microBatches(
  { inputs, targets, documents: begins }: StepBatch,
  {
    sequenceLength,
    microBatchSequenceCount,
    maskDocuments,
  }: Pick<StepShape, 'sequenceLength' | 'microBatchSequenceCount' | 'maskDocuments'>,
  { first, count }: SequenceRange,
): MicroBatch[] {
  const targetCount = Math.max(1, countTargets(targets));
  return Array.from({ length: Math.ceil(count / microBatchSequenceCount) }, (_, micro) => {
    const from = micro * microBatchSequenceCount;
    const [begin, end] = [from, Math.min(count, from + microBatchSequenceCount)].map(
      (sequence) => (first + sequence) * sequenceLength,
    );
    const own = targets.subarray(begin, end);
    const ids = inputs.subarray(begin, end);
    const documents = maskDocuments ? begins.subarray(begin, end) : null;
    return { inputs: ids, targets: own, share: countTargets(own) / targetCount, documents };
  });
}
