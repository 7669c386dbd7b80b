import { spanOf, type JobEvent } from '@relora/sdk';
import { Spread, StepEvent } from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { advance, newProgress } from '../../cli/dist/jobProgress.js';
import { reportLines } from '../../examples/demo/report.mjs';

const header = { sequence: 1, time: new Date(0), final: false, attempt: 1 };
const single = StepEvent.fromPartial({
  step: 0,
  loss: 4,
  tokenCount: 100,
  trainedTokens: 100,
  stepSeconds: 0.5,
});
/** Steps 1 to 9; only the last one has values of its own. */
const nine = StepEvent.fromPartial({
  ...single,
  step: 9,
  loss: 1,
  trainedTokens: 1000,
  span: {
    firstStep: 1,
    tokenCount: 900,
    seconds: 4.5,
    loss: { last: 1, min: 1, max: 3, mean: 2, valueCount: 9 },
  },
});

test('a step alone is a span of one, and a span is what it says', () => {
  const four = { last: 4, min: 4, max: 4, mean: 4, valueCount: 1, nonfiniteCount: 0 };
  expect(spanOf(single)).toMatchObject({ firstStep: 0, tokenCount: 100, seconds: 0.5, loss: four });
  expect(spanOf(single).tokensPerSecond.mean).toBe(200);
  expect(spanOf({ ...single, loss: NaN }).loss).toMatchObject({ valueCount: 0, nonfiniteCount: 1 });
  const omitted = spanOf({ ...single, omitted: true });
  expect([omitted.omittedCount, omitted.loss.valueCount]).toEqual([1, 0]);
  expect(spanOf(nine)).toMatchObject({ firstStep: 1, tokenCount: 900, seconds: 4.5, loss: { mean: 2 } });
  expect(spanOf(nine).gradientNorm).toEqual(Spread.fromPartial({}));
});

test('the report of the demo counts the seconds of every step of a span', () => {
  const progress = newProgress('jobs/demo', 10);
  const evaluation = { step: 0, loss: 4, bitsPerByte: 2 };
  advance(progress, { ...header, kind: 'evaluation', evaluation } as JobEvent);
  for (const step of [single, nine]) advance(progress, { ...header, kind: 'step', step } as JobEvent);
  expect(progress.losses).toEqual([
    { step: 0, firstStep: 0, loss: 4 },
    { step: 9, firstStep: 1, loss: 2 },
  ]);
  const lines: string[] = reportLines(progress, { gzip: null, xz: null });
  expect(lines.find((line) => line.startsWith('speed'))).toMatch(/200 tokens\/s, 1 k tokens in 0:05$/);
});
