import { CompareJobsResponse, type ComparedJob } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { comparisonText } from '../../cli/dist/comparisonText.js';
import { comparisonReport } from '../../cli/dist/report/comparisonReport.js';
import { seedMeans } from '../../cli/dist/seedMeans.js';

interface Tried {
  kind: string;
  seed: number;
  loss?: number;
  tokens?: number;
}

/** A server's answer: lists the differing settings for every job. */
function comparisonOf(tried: Tried[]): CompareJobsResponse {
  const jobs = tried.map(({ kind, seed, loss, tokens = 1000 }, index): Partial<ComparedJob> => {
    const evaluation =
      loss === undefined
        ? {}
        : { evaluationLoss: loss, evaluationStep: tokens / 10, evaluationTokenCount: 64 };
    const displayName = `${kind}, seed ${seed}`;
    return { name: `jobs/${index}`, displayName, seed, trainedTokens: tokens, ...evaluation };
  });
  return CompareJobsResponse.fromPartial({
    jobs,
    reference: 'jobs/0',
    differences: [
      { field: 'kind', values: tried.map(({ kind }) => JSON.stringify(kind)) },
      { field: 'seed', values: tried.map(({ seed }) => String(seed)) },
    ],
  });
}

const view = { metric: 'held-out', axis: 'tokens', width: 100, height: 12, isColored: false } as const;

describe('means over seeds', () => {
  const comparison = comparisonOf([
    { kind: 'full-rank', seed: 1, loss: 2 },
    { kind: 'full-rank', seed: 2, loss: 2.2 },
    { kind: 'relora', seed: 2, loss: 2.3 },
    { kind: 'relora', seed: 1, loss: 2.1 },
    { kind: 'lora', seed: 1, loss: 3 },
  ]);

  it('put jobs together that differ in their seed alone, and pair the differences by seed', () => {
    const [fullRank, relora, ...others] = seedMeans(comparison);
    expect(others).toEqual([]);
    expect(fullRank).toMatchObject({
      label: 'full-rank',
      seeds: [1, 2],
      isReference: true,
      difference: null,
    });
    expect(relora).toMatchObject({ label: 'relora', seeds: [2, 1], isReference: false });
    expect(relora!.loss.mean).toBeCloseTo(2.2, 12);
    expect(relora!.loss.deviation).toBeCloseTo(Math.SQRT2 / 10, 12);
    // Each seed differs by 0.1: pairing different seeds would show a spread.
    expect(relora!.difference!.mean).toBeCloseTo(0.1, 12);
    expect(relora!.difference!.deviation).toBeCloseTo(0, 12);
  });

  it('are shown in the terminal and on the page', () => {
    const text = comparisonText(comparison, view).join('\n');
    expect(text).toMatch(/^ means over seeds\n {2} +seeds +held-out +difference$/m);
    expect(text).toMatch(/^ {2}full-rank +1, 2 +2\.1000 ± 0\.1414 +reference$/m);
    expect(text).toMatch(/^ {2}relora +2, 1 +2\.2000 ± 0\.1414 +\+0\.1000 ± 0\.0000$/m);
    const html = comparisonReport(comparison, new Date(0));
    expect(html).toContain('<h2>Means over seeds</h2>');
    expect(html).toContain('2.2000 ± 0.1414');
  });

  it('are of runs evaluated after as many tokens, and of more than one seed', () => {
    const running = comparisonOf([
      { kind: 'full-rank', seed: 1, loss: 2 },
      { kind: 'full-rank', seed: 2, loss: 2.5, tokens: 500 },
      { kind: 'relora', seed: 1, loss: 2.1 },
      { kind: 'relora', seed: 2 },
    ]);
    expect(seedMeans(running)).toEqual([]);
    expect(comparisonText(running, view).join('\n')).not.toContain('means over seeds');
    expect(comparisonReport(running, new Date(0))).not.toContain('Means over seeds');
  });
});
