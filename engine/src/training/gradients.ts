import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Collective } from '../device/collective.js';
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
  sumFor(parameters: readonly Parameter[]): GradientBuffer {
    if (this.sum === null || !this.sum.fits(parameters)) {
      this.dispose();
      this.sum = new GradientBuffer(this.device, parameters);
    }
    return this.sum;
  }

  /** Buffer for a further micro-batch before it is added. */
  partFor(sum: GradientBuffer): GradientBuffer {
    return (this.part ??= new GradientBuffer(this.device, sum.parameters));
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
  const sum = gradients.sumFor(model.trainable());
  const own = ownSequences(batch.inputs.length / sequenceLength, collective);
  let isEmpty = true;
  device.clearResult(result);

  const micros = microBatches(batch, shape, own);
  // Fraction of the step's targets over which this member's gradients are a mean.
  const ownShare = shape.isApart ? micros.reduce((sum, { share }) => sum + share, 0) : 1;
  for (const [micro, { inputs, targets, share, documents }] of micros.entries()) {
    await nextTurn(); // handles messages and signals between micro-batches
    if (await collective.any(signal.aborted)) return 'aborted';
    if (share === 0) continue;
    const target = isEmpty ? sum : gradients.partFor(sum);
    const first = own.first + micro * microBatchSequenceCount;
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
      },
    );
    if (!isEmpty) device.addInPlace(sum.whole, target.whole);
    isEmpty = false;
  }
  if (!(await collective.any(!isEmpty))) return 'empty';
  if (collective.size === 1) return sum;
  // Another member has targets although this one has none.
  if (isEmpty) device.zero(sum.whole);
  if (!shape.isApart) await collective.sum([sum.whole], shape.reductionType);
  const { loss, lossSum, rowLosses } = await device.readResult(result);
  const losses = await collective.sumNumbers([loss * ownShare, lossSum]);
  await collective.sumValues(rowLosses); // each row's loss is computed by exactly one member
  device.writeLosses(result, { loss: losses[0]!, lossSum: losses[1]!, rowLosses });
  return sum;
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
