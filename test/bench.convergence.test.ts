import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { compare } from '../bench/convergence/compare.mjs';
import { orderOf } from '../bench/convergence/figures.mjs';
import { modes } from '../bench/convergence/modes.mjs';
import { conclusions, plots, report } from '../bench/convergence/report.mjs';
import { Runs } from '../bench/convergence/runs.mjs';
import { tuned } from '../bench/convergence/tune.mjs';
import { linePanel } from '../bench/plots/lines.mjs';
import { figure } from '../bench/plots/svg.mjs';
import { licenseDataset, temporaryFolders } from './engine/tinyRun.js';

const tinyPlan = {
  shape: {
    hiddenSize: 32,
    intermediateSize: 48,
    numHiddenLayers: 1,
    numAttentionHeads: 4,
    numKeyValueHeads: 4,
    maxPositionEmbeddings: 64,
    ropeTheta: 10_000,
    rmsNormEps: 1e-6,
    tieWordEmbeddings: false,
  },
  vocabSize: 257,
  rank: 2,
  stepCount: 12,
  warmStartStepCount: 4,
  cycleStepCount: 4,
  restartWarmupStepCount: 1,
  warmupStepCount: 2,
  batch: { sequenceLength: 16, sequenceCount: 4, microBatchSequenceCount: 4 },
  evaluationCount: 3,
  heldOutTokenCount: 512,
  precision: 'float32',
};
/** Of a curve of evaluations. */
interface Point {
  tokenCount: number;
  loss: number;
}

const machine = {
  cpuModel: 'a CPU',
  instructionSet: 'a set',
  commit: 'a commit',
  trainTokenCount: 1000,
};
const openDataset = licenseDataset(temporaryFolders());
const cacheFolder = mkdtempSync(join(tmpdir(), 'relora-convergence-cache-'));
afterAll(() => rmSync(cacheFolder, { recursive: true, force: true }));

describe('a comparison of modes', () => {
  it('trains each mode on the same tokens at its own best rate or scale, and repeats no finished run', async () => {
    const dataset = await openDataset();
    const said: string[] = [];
    const compareAll = async () => {
      const runs = new Runs({
        datasetFolder: dataset.folder,
        datasetSha256: dataset.manifestSha256,
        instructionSet: 'best',
        cacheFolder,
        parallelCount: 2,
        say: (line: string) => said.push(line),
      });
      try {
        const chosen = modes.filter(({ name }) => name === 'fullRank' || name === 'relora');
        return await compare(tinyPlan, chosen, [1, 2], runs);
      } finally {
        await runs.close();
      }
    };
    const compared = await compareAll();
    const trainedCount = said.length;
    expect(readdirSync(cacheFolder)).toHaveLength(trainedCount);

    const [fullRank, relora] = compared;
    for (const seed of [0, 1]) {
      const [one, other]: Point[][] = [fullRank, relora].map(({ runs }) => runs[seed].curve);
      expect(one!.map(({ tokenCount }) => tokenCount)).toEqual([0, 256, 512, 768]);
      expect(other!.map(({ tokenCount }) => tokenCount)).toEqual([0, 256, 512, 768]);
      expect(other![0]!.loss).toBe(one![0]!.loss); // the same weights and the same text
      expect(one!.at(-1)!.loss).toBeLessThan(one![0]!.loss);
    }
    // Two cycles of rank 2 at most; full rank has no such bound.
    expect(relora.runs[0].effectiveRank).toBeLessThanOrEqual(4);
    expect(fullRank.runs[0].effectiveRank).toBeGreaterThan(4);
    const best = Math.min(...relora.tried.map(({ loss }: { loss: number }) => loss));
    expect(relora.runs[0].curve.at(-1).loss).toBe(best);

    const text = report(tinyPlan, [1, 2], compared, machine);
    for (const word of ['full-rank', 'ReLoRA', relora.runs[0].trainableCount, 'a commit'])
      expect(text).toContain(String(word));
    const svg = figure('Loss', plots(compared).map(linePanel));
    expect(`${text}${svg}`).not.toMatch(/NaN|undefined|Infinity/);

    expect(await compareAll()).toEqual(compared);
    expect(said).toHaveLength(trainedCount);
  });
});

describe('what a comparison says', () => {
  const row = (name: string, losses: number[], ratio = 1) => ({
    mode: { name, label: name, kind: name.startsWith('relora') ? 'relora' : 'lora' },
    losses,
    ratio,
    textError: 0.001,
  });

  it('follows the numbers, either way, and is no order where seeds or errors do not tell', () => {
    const order = (lower: number[], higher: number[]) =>
      orderOf(row('relora', lower), row('lora', higher)).verdict;
    expect(order([1, 1.1, 1.2], [1.3, 1.41, 1.49])).toBe('asExpected');
    expect(order([1.3, 1.41, 1.49], [1, 1.1, 1.2])).toBe('reversed');
    expect(order([1, 1.1, 1.2], [1.01, 1.09, 1.21])).toBe('undecided');
    expect(order([1], [2])).toBe('undecided'); // a single seed gives no spread
    expect(orderOf(row('relora', [1, 1.1]), row('lora', [1.5, 1.7])).difference).toBeCloseTo(0.55, 12);
  });

  it('names what came out against the expectation, and whether any mode is near full rank', () => {
    const rows = (reloraRatio: number) => [
      row('fullRank', [1, 1.1]),
      row('reloraWarm', [1.4, 1.51], reloraRatio),
      row('loraWarm', [1.2, 1.29]),
      row('lora', [1.6, 1.69]),
    ];
    const text = conclusions(rows(1.05), [1, 2]).join('\n');
    expect(text).toContain('fullRank ends below reloraWarm, as expected');
    expect(text).toContain('reloraWarm ends above loraWarm, against the expectation');
    expect(text).toContain('loraWarm ends below lora, as expected');
    expect(text).toMatch(/No mode with restarts is within 2 %.*reloraWarm \(5\.00 %\)/);
    expect(conclusions(rows(1.013), [1, 2]).join('\n')).toContain('at equal tokens: reloraWarm (1.30 %)');
  });
});

describe('a search for a value', () => {
  it('continues beyond its grid while the best is at the edge, and says where it could not', async () => {
    const around = (best: number) => (value: number) =>
      Promise.resolve(Math.abs(Math.log2(value) - Math.log2(best)));
    expect(await tuned([1, 2, 4], around(2))).toMatchObject({ value: 2, isInside: true });
    const beyond = await tuned([1, 2, 4], around(16));
    expect(beyond).toMatchObject({ value: 16, isInside: true });
    expect(beyond.tried.map(({ value }) => value)).toEqual([1, 2, 4, 8, 16, 32]);
    expect(await tuned([1, 2, 4], around(0.125))).toMatchObject({ value: 0.125, isInside: false });
    const diverging = (value: number) => Promise.resolve(value > 1 ? Infinity : 3 - value);
    expect(await tuned([1, 2, 4], diverging)).toMatchObject({ value: 1, isInside: true });
    await expect(tuned([1, 2], () => Promise.resolve(Infinity))).rejects.toThrow('Every value diverged');
  });
});
