import type { DocumentLoss, DocumentsReport } from '../plan/trainingEvent.js';
import { lossBinCount, lossBinNats, worstDocumentsMax } from '../plan/trainingEvent.js';

/** Document statistics between two reports; part of a checkpoint, so that a resumed run reports the same. */
export interface DocumentRecord {
  /** Steps since the last report; null before the first of them. */
  window: { firstStep: number; documentCount: number; histogram: number[]; worst: DocumentLoss[] } | null;
  /** Exponentially weighted mean of step losses: each step weighs a tenth less than the next. */
  mean: number;
  variance: number;
  stepCount: number;
  /** Last step that was reported as a spike; -1 for none. */
  spikeStep: number;
}

export const emptyDocuments: DocumentRecord = {
  window: null,
  mean: 0,
  variance: 0,
  stepCount: 0,
  spikeStep: -1,
};

/** With more rows, losses are not read: such a step takes seconds, and the vector megabytes. */
export const documentRowsMax = 1 << 22;

/** A loss is a spike if it exceeds the mean of earlier steps by this many standard deviations, and also by this fraction of the mean. */
const spikeDeviations = 4;
const spikeShare = 0.02;
/** Steps needed before a spike can be detected, and the minimum distance between reported spikes: the first is the one to look at. */
const usualStepCount = 20;
const spikeDistance = 10;
const forgetting = 0.1;

/** One computed step. */
export interface StepRows {
  step: number;
  loss: number;
  /** [sequences * time], row by row; a target of -1 does not count. */
  targets: Int32Array;
  /** Where, within its sequence, the document of each row begins. */
  documents: Int32Array;
  rowLosses: Float32Array;
  sequenceLength: number;
  /** Number of the first sequence in the run. */
  firstSequence: number;
}

/**
 * Adds the losses of a step's documents. Returns the updated record and the reports that are due: a step whose loss spikes is reported at
 * once by itself, and all documents together every `windowStepCount` steps.
 */
export function takeDocuments(
  before: DocumentRecord,
  rows: StepRows,
  windowStepCount: number,
): { record: DocumentRecord; reports: DocumentsReport[] } {
  const { step, loss } = rows;
  const documents = [...documentsOf(rows)];
  const isFinite = Number.isFinite(loss);
  const isSpike = isJump(before, step, loss);
  const reports: DocumentsReport[] = [];
  if (isSpike) reports.push({ firstStep: step, step, isSpike, ...summaryOf(documents) });
  const record = { ...before, spikeStep: isSpike ? step : before.spikeStep };
  // A loss that is not finite would spoil the mean, and has no bin in the histogram.
  if (!isFinite) return { record, reports };
  const difference = loss - record.mean;
  record.stepCount++;
  const share = Math.max(forgetting, 1 / record.stepCount);
  record.mean += share * difference;
  record.variance = (1 - share) * (record.variance + share * difference * difference);
  record.window = joined(record.window, step, summaryOf(documents));
  const closed = (step + 1) % windowStepCount === 0 ? closeWindow(record, step + 1) : [];
  return { record, reports: [...reports, ...closed] };
}

/** The report of the steps since the last one, up to but excluding `nextStep`; empty if there are none. */
export function closeWindow(record: DocumentRecord, nextStep: number): DocumentsReport[] {
  const { window } = record;
  record.window = null;
  return window === null ? [] : [{ ...window, step: nextStep - 1, isSpike: false }];
}

function isJump(
  { mean, variance, stepCount, spikeStep }: DocumentRecord,
  step: number,
  loss: number,
): boolean {
  if (spikeStep >= 0 && step - spikeStep < spikeDistance) return false;
  if (!Number.isFinite(loss)) return true;
  const above = Math.max(spikeDeviations * Math.sqrt(variance), spikeShare * mean);
  return stepCount >= usualStepCount && loss > mean + above;
}

/** The parts of documents in a step: a document that continues in another sequence has another part there. */
function* documentsOf(rows: StepRows): Generator<DocumentLoss> {
  const { step, targets, documents, rowLosses, sequenceLength, firstSequence } = rows;
  for (let begin = 0; begin < targets.length; begin += sequenceLength) {
    const end = begin + sequenceLength;
    const sequence = firstSequence + begin / sequenceLength;
    for (let row = begin; row < end;) {
      const first = row;
      let sum = 0;
      let tokenCount = 0;
      do {
        if (targets[row] !== -1) {
          sum += rowLosses[row]!;
          tokenCount++;
        }
        row++;
      } while (row < end && documents[row] !== row - begin);
      if (tokenCount === 0) continue;
      const excess = sum - tokenCount * (Number.isFinite(rows.loss) ? rows.loss : 0);
      yield { step, sequence, firstToken: first - begin, tokenCount, loss: sum / tokenCount, excess };
    }
  }
}

function summaryOf(
  documents: readonly DocumentLoss[],
): Pick<DocumentsReport, 'documentCount' | 'histogram' | 'worst'> {
  const histogram = new Array<number>(lossBinCount).fill(0);
  for (const { loss } of documents) {
    const bin = Number.isFinite(loss) ? Math.floor(loss / lossBinNats) : lossBinCount;
    histogram[Math.max(0, Math.min(lossBinCount - 1, bin))]!++;
  }
  return { documentCount: documents.length, histogram, worst: worstOf(documents) };
}

/** Documents that add most to the loss of their step; those that are not finite come first. */
function worstOf(documents: readonly DocumentLoss[]): DocumentLoss[] {
  const rank = ({ excess }: DocumentLoss): number => (Number.isNaN(excess) ? Infinity : excess);
  const least = [...documents].sort((a, b) => {
    const [one, other] = [rank(a), rank(b)];
    return one === other
      ? a.step - b.step || a.sequence - b.sequence || a.firstToken - b.firstToken
      : other - one;
  });
  return least.slice(0, worstDocumentsMax);
}

function joined(
  window: DocumentRecord['window'],
  step: number,
  summary: ReturnType<typeof summaryOf>,
): NonNullable<DocumentRecord['window']> {
  if (window === null) return { firstStep: step, ...summary };
  return {
    firstStep: window.firstStep,
    documentCount: window.documentCount + summary.documentCount,
    histogram: window.histogram.map((count, bin) => count + summary.histogram[bin]!),
    worst: worstOf([...window.worst, ...summary.worst]),
  };
}
