import type { ExportDifference } from '../plan/exportDifference.js';
import type { LogitPart } from './streamedLogits.js';

/**
 * Compares logits of some tokens, a part of the vocabulary at a time, in float64. Adding a constant to all logits of a token changes
 * nothing, so the mean difference of each token is subtracted.
 */
export class LogitComparison {
  private readonly rows: RowSums[];

  constructor(
    private readonly targets: Int32Array,
    private readonly vocabSize: number,
  ) {
    this.rows = Array.from(targets, () => ({
      ...{ value: 0, squares: 0, difference: 0, differenceSquares: 0, least: 0, most: 0 },
      ...{ wanted: new LogLoss(), found: new LogLoss() },
    }));
  }

  add(wanted: LogitPart, found: LogitPart): void {
    const { first, count } = wanted;
    for (const [row, sums] of this.rows.entries()) {
      const [one, other] = [wanted, found].map(({ values }) =>
        values.subarray(row * count, (row + 1) * count),
      ) as [Float32Array, Float32Array];
      const [start, target] = [first === 0, this.targets[row]! - first];
      let { value, squares, difference, differenceSquares } = sums;
      let least = start ? Infinity : sums.least;
      let most = start ? -Infinity : sums.most;
      for (let id = 0; id < count; id++) {
        const d = other[id]! - one[id]!;
        value += one[id]!;
        squares += one[id]! * one[id]!;
        difference += d;
        differenceSquares += d * d;
        // The sums keep a NaN, and with them the result.
        if (d < least) least = d;
        if (d > most) most = d;
      }
      Object.assign(sums, { value, squares, difference, differenceSquares, least, most });
      sums.wanted.add(one, target);
      sums.found.add(other, target);
    }
  }

  result(): Omit<ExportDifference, 'heldOut' | 'logitDifferenceRatioMax'> {
    let largest = 0;
    let differences = 0;
    let spread = 0;
    let loss = 0;
    let exportedLoss = 0;
    for (const sums of this.rows) {
      const mean = sums.difference / this.vocabSize;
      const furthest = Math.max(sums.most - mean, mean - sums.least);
      largest = Math.max(largest, furthest); // a NaN stays
      // Never negative by rounding, but NaN stays NaN.
      const squares = sums.differenceSquares - mean * sums.difference;
      differences += squares < 0 ? 0 : squares;
      spread += sums.squares - sums.value ** 2 / this.vocabSize;
      loss += sums.wanted.value;
      exportedLoss += sums.found.value;
    }
    const tokenCount = this.targets.length;
    return {
      tokenCount,
      logitDifferenceMax: largest,
      logitDifferenceRatio: differences === 0 ? 0 : Math.sqrt(differences / spread),
      loss: loss / tokenCount,
      exportedLoss: exportedLoss / tokenCount,
    };
  }
}

/** Sums over one token's logits, and over their differences from those of the export. */
interface RowSums {
  value: number;
  squares: number;
  difference: number;
  differenceSquares: number;
  least: number;
  most: number;
  wanted: LogLoss;
  found: LogLoss;
}

/** -log of a target's probability, from logits that arrive in parts. */
class LogLoss {
  private highest = -Infinity;
  /** Sum of the exponentials, relative to that of the largest logit so far. */
  private sum = 0;
  private ofTarget = NaN;

  /** @param target index within these logits, if it is among them */
  add(logits: Float32Array, target: number): void {
    let highest = this.highest;
    for (let i = 0; i < logits.length; i++) if (logits[i]! > highest) highest = logits[i]!;
    let sum = this.sum * Math.exp(this.highest - highest);
    for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - highest);
    [this.highest, this.sum] = [highest, sum];
    if (target >= 0 && target < logits.length) this.ofTarget = logits[target]!;
  }

  get value(): number {
    return this.highest + Math.log(this.sum) - this.ofTarget;
  }
}
