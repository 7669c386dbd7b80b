import { spanOf } from '@relora/engine/plan';
import type { WatchJobResponse } from '@relora/sdk/contract';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import type { JobEvent, JobEventBody } from '../../server/dist/jobs/job.js';
import { HistoryFolding } from '../../server/dist/jobs/historyFolding.js';
import type { NewEvent } from '../../server/dist/jobs/jobChange.js';
import { readHistory } from '../../server/dist/jobs/metricHistory.js';
import { openApi } from './apiServer.js';
import { allEvents, claim, execution, openParts, stepEvent, submit, type Parts } from './parts.js';
import { stores } from './postgres.js';

const never = new AbortController().signal;
const eventsKept = 1000;

function foldingOf(parts: Parts, rule = { windowMs: -1, eventsKept }): HistoryFolding {
  return new HistoryFolding(parts.db, parts.journal, rule, parts.log, (error) => {
    throw error;
  });
}

const evaluation = (step: number): NewEvent => ({
  timeMs: Date.now(),
  body: {
    kind: 'evaluation',
    step,
    loss: 9 - step / 1000,
    perplexity: 1,
    bitsPerByte: 1,
    tokenCount: 1,
    seconds: 1,
  },
});

const lossAt = (step: number): number => (step % 997 === 5 ? NaN : Math.sin(step) + 10 / (1 + step));

/** A run that crashes at step 3400, resumes at 3072 and ends at 6000, with an evaluation every 700 steps. */
async function longRun(parts: Parts): Promise<string> {
  const { id } = await submit(parts);
  const take = async (attempt: number, from: number, to: number): Promise<void> => {
    const key = { jobId: id, attempt };
    await parts.attempts.started(key, execution, from);
    let batch: NewEvent[] = [];
    for (let step = from; step < to; step++) {
      if (step % 700 === 0 && step > from) batch.push(evaluation(step));
      if (step === 3072) batch.push({ timeMs: 1, body: { kind: 'sample', step, prompt: '', text: '' } });
      batch.push(stepEvent(step, lossAt(step) + attempt - 1));
      if (batch.length < 200 && step < to - 1) continue;
      await parts.attempts.append(key, batch);
      batch = [];
    }
  };
  await take((await claim(parts)).attempt, 0, 3400);
  await parts.attempts.crashed({ jobId: id, attempt: 1 }, 'Gone', {
    attemptsWithoutProgressMax: 9,
    retryDelayMs: 0,
  });
  await take((await claim(parts)).attempt, 3072, 6000);
  await parts.attempts.succeeded({ jobId: id, attempt: 2 });
  return id;
}

/** Checks that every number occurs once, as an event or within a span. */
function expectWhole(events: readonly JobEvent[], from = 1): void {
  let next = from;
  for (const { firstSequence, sequence } of events) {
    expect(firstSequence).toBe(next);
    next = sequence + 1;
  }
}

const stepsOf = (events: readonly JobEvent[]) =>
  events.flatMap(({ body }) => (body.kind === 'step' ? [body] : []));
const others = (events: readonly JobEvent[]) => events.filter(({ body }) => body.kind !== 'step');

async function curve(parts: Parts, id: string, bucket: number) {
  const job = (await parts.store.find(id))!;
  return await readHistory(parts.journal, job, bucket, never);
}

describe.each(stores)('history on $name', ({ url, skip }) => {
  const open = async () => await openParts({}, undefined, undefined, await url());

  it.skipIf(skip)(
    'a start looks at the jobs that have something left to fold, and at no others',
    async () => {
      const parts = await open();
      const [done, left] = [await longRun(parts), await longRun(parts)];
      await foldingOf(parts).fold(done);
      const folding = foldingOf(parts);
      onTestFinished(async () => await folding.stop());
      const looked: string[] = [];
      vi.spyOn(folding, 'fold').mockImplementation((id) => Promise.resolve(void looked.push(id)));
      folding.start();
      await expect.poll(() => looked).toEqual([left]);
      // Events that are in a span but not yet removed are left too: the start schedules their removal.
      const timers = vi.spyOn(globalThis, 'setTimeout');
      const monthMs = 30 * 86_400_000;
      await foldingOf(parts, { windowMs: monthMs, eventsKept }).fold(left);
      // A longer timer would fire at once.
      expect(Math.max(...timers.mock.calls.map(([, ms = 0]) => ms))).toBe(2 ** 31 - 1);
      timers.mockRestore();
      const again = foldingOf(parts);
      onTestFinished(async () => await again.stop());
      vi.spyOn(again, 'fold').mockImplementation((id) => Promise.resolve(void looked.push(id)));
      again.start();
      await expect.poll(() => looked).toEqual([left, left]);
    },
  );

  it.skipIf(skip)('folds old step events: every number stays, other events stay as they are', async () => {
    const parts = await open();
    const id = await longRun(parts);
    const before = await allEvents(parts, id);
    await foldingOf(parts).fold(id);
    const after = await allEvents(parts, id);
    expectWhole(after);
    expect(after.at(-1)).toEqual(before.at(-1));
    expect(others(after)).toEqual(others(before));
    expect(after.slice(-eventsKept + 20)).toEqual(before.slice(-eventsKept + 20));
    expect(after.length).toBeLessThan(before.length / 3);
    // Each span matches its steps.
    for (const event of after) {
      if (event.body.kind !== 'step' || event.body.span === undefined) continue;
      const own = stepsOf(
        before.filter(({ sequence }) => sequence >= event.firstSequence && sequence <= event.sequence),
      );
      const losses = own.map(({ loss }) => loss).filter(Number.isFinite);
      const { span, ...last } = event.body;
      expect(last).toEqual(own.at(-1));
      expect(span).toMatchObject({
        firstStep: own[0]!.step,
        skippedCount: own.filter(({ skipped }) => skipped).length,
        tokenCount: 16 * own.length,
        loss: {
          min: Math.min(...losses),
          max: Math.max(...losses),
          last: losses.at(-1),
          valueCount: losses.length,
          nonfiniteCount: own.length - losses.length,
        },
      });
      expect(span.loss.mean).toBeCloseTo(losses.reduce((sum, loss) => sum + loss, 0) / losses.length, 12);
    }
    // Spans get longer with their distance from the head.
    const lengths = stepsOf(after).map((body) => body.step - spanOf(body).firstStep + 1);
    expect(Math.max(...lengths)).toBeLessThanOrEqual(16);
  });

  it.skipIf(skip)(
    'gives the same curve after folding as before, where a point is no less than a span',
    async () => {
      const parts = await open();
      const id = await longRun(parts);
      const before = await curve(parts, id, 8); // from single events
      expect(before.series.loss.points).toHaveLength(6000 / 8);
      const wide = await curve(parts, id, 64);
      await foldingOf(parts).fold(id);
      const after = await curve(parts, id, 64);
      expect(after.series.loss.points.length).toBe(wide.series.loss.points.length);
      for (const [index, point] of after.series.loss.points.entries()) {
        const { mean, trainingSeconds, ...exact } = wide.series.loss.points[index]!;
        expect(point).toMatchObject(exact);
        expect(point.mean).toBeCloseTo(mean, 12);
        expect(point.trainingSeconds).toBeCloseTo(trainingSeconds, 6);
      }
      const valuesOf = ({ series }: typeof after) =>
        series.evaluationLoss.points.map(({ trainingSeconds: _, ...point }) => point);
      expect(valuesOf(after)).toEqual(valuesOf(wide));
      expect(after.series.loss.nonfiniteCount).toBe(wide.series.loss.nonfiniteCount);
      expect(after.countedTokens).toBe(wide.countedTokens);
      expect(after.trainedTokens).toBe(wide.trainedTokens);
      // Steps repeated after the crash are not counted twice.
      expect(after.countedTokens).toBe(6000 * 16);
    },
  );

  it.skipIf(skip)('folds in any pieces to the same, and again to nothing else', async () => {
    const [whole, pieces] = [await open(), await open()];
    const [id, other] = [await longRun(whole), await longRun(pieces)];
    await foldingOf(whole).fold(id);
    for (let round = 0; round < 20; round++) {
      // Interrupted in the middle, as by a server that stops.
      const folding = foldingOf(pieces);
      const work = folding.fold(other);
      for (let turn = 0; turn < 3 * round; turn++) await new Promise((resolve) => setImmediate(resolve));
      await folding.stop();
      await work;
      expectWhole(await allEvents(pieces, other));
    }
    await foldingOf(pieces).fold(other);
    const plain = (events: readonly JobEvent[]) =>
      events.map(({ timeMs: _, ...event }) => JSON.stringify(event)).join('\n');
    const expected = plain(await allEvents(whole, id));
    expect(plain(await allEvents(pieces, other))).toEqual(expected);
    await foldingOf(whole).fold(id);
    expect(plain(await allEvents(whole, id))).toEqual(expected);
  });

  it.skipIf(skip)('leaves alone what is younger than the window, and folds it when it is old', async () => {
    const parts = await open();
    const id = await longRun(parts);
    const before = await allEvents(parts, id);
    await foldingOf(parts, { windowMs: 3_600_000, eventsKept: 0 }).fold(id);
    expect(await allEvents(parts, id)).toEqual(before);
    await foldingOf(parts, { windowMs: -1, eventsKept: 0 }).fold(id);
    const after = await allEvents(parts, id);
    expectWhole(after);
    expect(stepsOf(after).length).toBeLessThan(stepsOf(before).length / 10);
  });
});

it('a span of a million steps back is as long as its distance allows, and a few thousand spans hold them all', async () => {
  const parts = await openParts();
  const { id } = await submit(parts);
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(key, execution, 0);
  const folding = foldingOf(parts, { windowMs: -1, eventsKept });
  // Events of 16 steps each, like those of a fast run: 200,000 steps in a second or two.
  const steps = 200_000;
  for (let step = 15; step < steps;) {
    const batch: NewEvent[] = [];
    for (; batch.length < 500 && step < steps; step += 16) {
      const { timeMs, body } = stepEvent(step) as { timeMs: number; body: JobEventBody & { kind: 'step' } };
      const span = { ...spanOf(body), firstStep: step - 15, tokenCount: 256, seconds: 1.6 };
      batch.push({ timeMs, body: { ...body, span } });
    }
    await parts.attempts.append(key, batch);
    await folding.fold(id);
  }
  await parts.attempts.succeeded(key);
  await folding.fold(id);
  const events = await allEvents(parts, id);
  expectWhole(events);
  const spans = stepsOf(events).map((body) => ({
    step: body.step,
    length: body.step - spanOf(body).firstStep + 1,
  }));
  expect(spans.reduce((sum, { length }) => sum + length, 0)).toBe(steps);
  for (const { step, length } of spans)
    expect(length).toBeLessThanOrEqual(Math.max(16, (steps - step) / 512));
  expect(Math.max(...spans.map(({ length }) => length))).toBe(256);
  const { trainedTokens, countedTokens } = await curve(parts, id, 200);
  expect(trainedTokens).toBe(16 * steps);
  expect(countedTokens).toBe(16 * steps);
});

it('watchers read spans from any number on, and a client of 0.1.0 sees no number missing', async () => {
  const { parts, training } = await openApi();
  const id = await longRun(parts);
  await foldingOf(parts).fold(id);
  const watch = async (afterSequence: number, acceptSpans: boolean) => {
    const seen: WatchJobResponse[] = [];
    for await (const response of training.watchJob({ name: `jobs/${id}`, afterSequence, acceptSpans }))
      seen.push(response);
    return seen.map(({ event, omittedStepEvents }) => ({ ...event!, omittedStepEvents }));
  };
  const lastSequence = (await parts.store.find(id))!.lastSequence;
  const all = await watch(0, true);
  let next = 1;
  for (const { firstSequence, sequence, omittedStepEvents } of all) {
    expect(firstSequence).toBe(next);
    expect(omittedStepEvents).toBe(sequence - firstSequence);
    next = sequence + 1;
  }
  expect(next).toBe(lastSequence + 1);
  expect(all.some(({ step }) => step?.span?.loss !== undefined)).toBe(true);

  // In the middle of a span.
  const span = all.find(({ firstSequence, sequence }) => sequence - firstSequence > 4)!;
  const rest = await watch(span.firstSequence + 2, true);
  expect(rest[0]).toMatchObject({ firstSequence: span.firstSequence, sequence: span.sequence });
  expect(rest).toHaveLength(all.filter(({ sequence }) => sequence >= span.sequence).length);

  const old = await watch(0, false);
  expect(old.map(({ sequence }) => sequence)).toEqual(
    Array.from({ length: lastSequence }, (_, index) => index + 1),
  );
  const plain = (events: typeof old) => events.flatMap(({ step }) => step?.step ?? []);
  expect(plain(old)).toEqual(plain(all));
});
