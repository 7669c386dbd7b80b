import type { DocumentLoss, DocumentsReport } from '../plan/trainingEvent.js';
import { lossBinCount, lossBinNats, worstDocumentsMax } from '../plan/trainingEvent.js';

/** What a run remembers of its documents between two reports; part of a checkpoint, so that a resumed run reports the same. */
export interface DocumentRecord {
  /** Steps since the last report; null before the first of them. */
  window: { firstStep: number; documentCount: number; histogram: number[]; worst: DocumentLoss[] } | null;
  /** Of the losses of steps, each weighing a tenth less than the one after it. */
  mean: number;
  variance: number;
  stepCount: number;
  /** Last step that was reported by itself; -1 for none. */
  spikeStep: number;
}

export const emptyDocuments: DocumentRecord = {
  window: null,
  mean: 0,
  variance: 0,
  stepCount: 0,
  spikeStep: -1,
};

/** Losses of more rows are not read: a step of that size is seconds long, and the vector megabytes. */
export const documentRowsMax = 1 << 22;

/** A loss so many standard deviations above the mean of the steps before it is a jump, where it is this much of the mean as well. */
const spikeDeviations = 4;
const spikeShare = 0.02;
/** Steps that say what is usual, and steps between two reports of a jump: the first is the one to look at. */
const usualStepCount = 20;
const spikeDistance = 10;
const forgetting = 0.1;

/** One step, as it was computed. */
export interface StepRows {
  step: number;
  loss: number;
  /** [sequences * time], row by row; targets of -1 count nothing. */
  targets: Int32Array;
  /** Where in its sequence the document of each row begins. */
  documents: Int32Array;
  rowLosses: Float32Array;
  sequenceLength: number;
  /** Number of the first in the run. */
  firstSequence: number;
}

/**
 * Takes the losses of a step's documents. Answers the record after it and what is to be reported now: a step whose loss jumps by
 * itself at once, and every `windowStepCount` steps all of them together.
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
  // A loss that is not finite says nothing of what is usual, and no histogram has a place for it.
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

/** The report of the steps since the last one, which end before a step; none where there are none. */
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

/** The parts of documents in a step: a document that continues in another sequence is another part there. */
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

/** By what they add to the loss of their step. What is not finite comes first. */
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
