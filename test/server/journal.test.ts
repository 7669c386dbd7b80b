import { EventEmitter, once } from 'node:events';
import { describe, expect, it, onTestFinished } from 'vitest';
import type { JobEvent } from '../../server/dist/jobs/job.js';
import type { AttemptKey } from '../../server/dist/jobs/jobAttempts.js';
import { JournalFollower } from '../../server/dist/jobs/journalFollower.js';
import { JournalReaders } from '../../server/dist/jobs/journalReaders.js';
import { RecentEvents } from '../../server/dist/jobs/recentEvents.js';
import { patienceMs } from '../patience.mjs';
import { claim, execution, openParts, stepEvent, submit, type Parts } from './parts.js';
import { stores } from './postgres.js';

async function runningJob(parts: Parts) {
  const { id } = await submit(parts);
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(key, execution, 0);
  return key;
}

/** A watcher like in the API: reads from a cursor, then waits. */
async function watch(parts: Parts, jobId: string, afterSequence = 0): Promise<JobEvent[]> {
  const seen: JobEvent[] = [];
  let sequence = afterSequence;
  for (;;) {
    const { events, isComplete } = await parts.journal.readAfter(jobId, sequence, 7);
    for (const event of events) {
      seen.push(event);
      sequence = event.sequence;
    }
    if (isComplete) return seen;
    const signal = AbortSignal.timeout(patienceMs);
    await parts.journal.changedSince(jobId, sequence, signal);
    signal.throwIfAborted();
  }
}

describe.each(stores)('on $name', ({ url, skip }) => {
  /** Every test has its own store. */
  const open = async (
    settings: Record<string, string> = {},
    dataFolder?: string,
    storeUrl?: string,
  ): Promise<Parts> => await openParts(settings, dataFolder, undefined, storeUrl ?? (await url()));

  describe.skipIf(skip)('a watcher', () => {
    it('sees every event once, in order, however appends and reads meet', async () => {
      const parts = await open();
      const key = await runningJob(parts);
      const watchers = Array.from({ length: 20 }, async (_, index) => await watch(parts, key.jobId, index));
      let step = 0;
      for (const count of [1, 3, 1, 40, 2, 1, 1, 9]) {
        await parts.attempts.append(
          key,
          Array.from({ length: count }, () => stepEvent(step++)),
        );
      }
      await parts.attempts.succeeded(key);
      const seen = await Promise.all(watchers);
      const all = (await parts.journal.readAfter(key.jobId, 0, 1000)).events;
      expect(all).toHaveLength(3 + 58 + 1);
      for (const [index, events] of seen.entries()) expect(events).toEqual(all.slice(index));
      expect(all.at(-1)).toMatchObject({ final: true, body: { kind: 'state', to: 'succeeded' } });
    });

    it('of a job that has ended gets the rest and the end at once, also from beyond the last event', async () => {
      const parts = await open();
      const key = await runningJob(parts);
      await parts.attempts.failed(key, { reason: 'TRAINING_DIVERGED', message: 'Diverged' });
      expect(await parts.journal.readAfter(key.jobId, 4)).toEqual({ events: [], isComplete: true });
      expect(await parts.journal.readAfter(key.jobId, 400)).toEqual({ events: [], isComplete: true });
      expect((await parts.journal.readAfter(key.jobId, 0, 2)).isComplete).toBe(false);
      expect(await watch(parts, key.jobId, 3)).toHaveLength(1);
    });

    it('that has much to read leaves a turn to everybody else after each full page', async () => {
      const parts = await open();
      const key = await runningJob(parts);
      const steps = Array.from({ length: 70 }, (_, step) => stepEvent(step));
      await parts.attempts.append(key, steps);
      let [turnCount, isOver] = [0, false];
      const turn = (): void => {
        turnCount++;
        if (!isOver) setImmediate(turn);
      };
      setImmediate(turn);
      let pageCount = 0;
      for (let sequence = 0; ;) {
        const { events } = await parts.journal.readAfter(key.jobId, sequence, 7);
        if (events.length < 7) break;
        pageCount++;
        sequence = events.at(-1)!.sequence;
      }
      isOver = true;
      expect(pageCount).toBe(10);
      expect(turnCount).toBeGreaterThanOrEqual(pageCount);
    });

    it('of the documents of a step finds its report among many, page by page', async () => {
      const parts = await open();
      const key = await runningJob(parts);
      const report = (firstStep: number, step: number, isSpike = false) => ({
        timeMs: 1,
        body: {
          kind: 'documents' as const,
          ...{ firstStep, step, isSpike, documentCount: 1 },
          ...{ histogram: [], worst: [] },
        },
      });
      const later = Array.from({ length: 1100 }, (_, index) => report(20 + index, 20 + index));
      await parts.attempts.append(key, [report(5, 5, true), report(0, 19), ...later]);
      const turn = new Promise<string>((resolve) => setImmediate(() => resolve('another turn')));
      const found = parts.journal.documentsAt(key.jobId, 5);
      expect(await Promise.race([found, turn])).toBe('another turn');
      expect(await found).toMatchObject({ step: 5, isSpike: true });
      expect(await parts.journal.documentsAt(key.jobId, 7)).toMatchObject({ firstStep: 0, step: 19 });
      expect(await parts.journal.documentsAt(key.jobId, 600)).toMatchObject({ firstStep: 600, step: 600 });
      expect(await parts.journal.documentsAt(key.jobId, 5000)).toBeUndefined();
    });

    it('shares the read of the store with others that ask the same at the same time', async () => {
      const parts = await open();
      const { jobId } = await runningJob(parts);
      const read = async () => (await parts.journal.readAfter(jobId, 1)).events;
      const [one, other] = await Promise.all([read(), read()]);
      expect(one.length).toBeGreaterThan(0);
      for (const [index, event] of one.entries()) expect(other[index]).toBe(event);
    });

    it('that goes away is forgotten', async () => {
      const parts = await open();
      const { jobId } = await runningJob(parts);
      const away = new AbortController();
      const waits = parts.journal.changedSince(jobId, 3, away.signal);
      away.abort();
      await waits;
      await parts.journal.changedSince(jobId, 3, away.signal);
    });
  });

  describe.skipIf(skip)('a follower', () => {
    it('continues with other jobs while the events of one are not taken', async () => {
      const parts = await open();
      const refused = await runningJob(parts);
      const other = await runningJob(parts);
      const readers = new JournalReaders(parts.db, parts.leases);
      await readers.register('reader', { tenant: null, fromStart: true });
      const taken = new EventEmitter();
      let refusals = 0;
      const take = async ({ id }: { id: string }, events: readonly JobEvent[]) => {
        if (id === refused.jobId) throw new Error(`Refused for the ${++refusals}th time`);
        for (const { body } of events) if (body.kind === 'step') taken.emit(String(body.step));
        return { state: '' };
      };
      const follower = new JournalFollower(
        { ...parts, readers, onStoreFailure: () => {} },
        { id: 'reader', tenant: null, withSteps: true, pauseMs: 0, take },
      );
      follower.start();
      onTestFinished(async () => await follower.stop());
      const stepCount = 20;
      for (let step = 0; step < stepCount; step++) {
        const isTaken = once(taken, String(step));
        for (const key of [refused, other]) await parts.attempts.append(key, [stepEvent(step)]);
        await isTaken;
      }
      // Each of the steps was a round over the jobs; the pauses before ten attempts are minutes.
      expect(refusals).toBeLessThan(stepCount / 2);
    });
  });

  describe.skipIf(skip)('the journal', () => {
    it('keeps every kind of event as it was reported', async () => {
      const parts = await open();
      const key = await runningJob(parts);
      const bodies = [
        { ...stepEvent(0, NaN).body, gradientNorm: -Infinity },
        {
          kind: 'evaluation' as const,
          step: 1,
          loss: 1 / 3,
          perplexity: Infinity,
          bitsPerByte: 1,
          tokenCount: 5,
          seconds: 0.1,
        },
        {
          kind: 'restart' as const,
          step: 5,
          restart: 1,
          deltaNorm: 0.25,
          logitChangeMax: 1e-7,
          logitChangeTolerance: 1e-4,
          learningRateBefore: 1e-3,
          learningRateAfter: 0,
          lossBefore: 5.25,
          lossAfter: 5.5,
          modules: [
            {
              module: 'q_proj' as const,
              deltaNorm: 0.25,
              effectiveRank: 3,
              rankAboveOnePercent: 4,
              measuredLayerCount: 1,
            },
          ],
          momentsZeroedRatio: 1,
          effectiveRank: 3,
          seconds: 0.1,
          ranks: [
            {
              layer: 'model.layers.0.self_attn.q_proj.weight',
              effectiveRank: 3,
              rankAboveOnePercent: 4,
              adapterRank: 4,
            },
          ],
        },
        {
          kind: 'plan' as const,
          step: 5,
          graphs: [{ module: 'q_proj' as const, graph: 'weightGradient' as const }],
          plannedOperations: 1.5e12,
          separateOperations: 2e12,
          plannedSeconds: 1.25,
          separateSeconds: null,
          recomputation: 'blocks' as const,
          precision: 'bfloat16' as const,
          basePrecision: 'int8' as const,
          instructionSet: 'avx512',
        },
        { kind: 'sample' as const, step: 1, prompt: 'Ein', text: 'Käse\u0000 {"nonFinite":"NaN"} 🙂\n' },
        { kind: 'warning' as const, reason: 'RESUMED_ON_OTHER_BACKEND', message: 'x' },
      ];
      await parts.attempts.append(
        key,
        bodies.map((body) => ({ timeMs: 1_700_000_000_123, body })),
      );
      const { events } = await parts.journal.readAfter(key.jobId, 3);
      expect(events.map(({ body }) => body)).toEqual(bodies);
      expect(events[0]).toMatchObject({ timeMs: 1_700_000_000_123, attempt: 1, final: false, sequence: 4 });
    });

    it('calls its listeners after the commit, with the job as it then is', async () => {
      const parts = await open();
      const key = await runningJob(parts);
      const reported: { step: number; sequences: number[] }[] = [];
      const end = parts.journal.onAppended((job, events) =>
        reported.push({ step: job.progress.step, sequences: events.map(({ sequence }) => sequence) }),
      );
      await parts.attempts.append(key, [stepEvent(0), stepEvent(1)]);
      end();
      await parts.attempts.append(key, [stepEvent(2)]);
      expect(reported).toEqual([{ step: 2, sequences: [4, 5] }]);
    });

    it('takes no number for what was rolled back', async () => {
      const parts = await open();
      const key = await runningJob(parts);
      const reported: unknown[] = [];
      parts.journal.onAppended((job) => reported.push(job));
      await expect(
        parts.journal.change(async (change) => {
          const row = (await change.find(key.jobId))!;
          await change.append(row, 1, [stepEvent(0)]);
          throw new Error('power cut');
        }),
      ).rejects.toThrow('power cut');
      expect(reported).toEqual([]);
      expect(await parts.attempts.append(key, [stepEvent(0)])).toMatchObject({ lastSequence: 4 });
      expect((await parts.journal.readAfter(key.jobId, 0)).events.map(({ sequence }) => sequence)).toEqual([
        1, 2, 3, 4,
      ]);
    });

    it('has a message of a trainer once that is stored again, as its answer was lost', async () => {
      const parts = await open();
      const { id } = await submit(parts);
      const key = { jobId: id, attempt: (await claim(parts)).attempt };
      const kinds = async () =>
        (await parts.journal.readAfter(id, 0)).events.map(({ body }) => ('to' in body ? body.to : body.kind));
      const twice = async (message: number, store: (numbered: AttemptKey) => Promise<unknown>) => {
        const first = await store({ ...key, message });
        expect(await store({ ...key, message })).toEqual(first);
      };
      await twice(1, async (numbered) => await parts.attempts.started(numbered, execution, 0));
      await twice(3, async (numbered) => await parts.attempts.append(numbered, [stepEvent(0), stepEvent(1)]));
      await twice(4, async (numbered) => await parts.attempts.append(numbered, [stepEvent(2)]));
      await twice(5, async (numbered) => await parts.attempts.succeeded(numbered));
      expect(await kinds()).toEqual(['queued', 'starting', 'running', 'step', 'step', 'step', 'succeeded']);
    });

    it('counts the messages of each attempt from the first', async () => {
      const parts = await open();
      const key = await runningJob(parts);
      await parts.attempts.append({ ...key, message: 7 }, [stepEvent(0)]);
      await parts.attempts.crashed(key, 'It was killed', { attemptsWithoutProgressMax: 3, retryDelayMs: 0 });
      const next = { jobId: key.jobId, attempt: (await claim(parts)).attempt };
      await parts.attempts.started({ ...next, message: 1 }, execution, 0);
      expect((await parts.store.find(key.jobId))?.state).toBe('running');
    });

    it('follows a run in its progress', async () => {
      const parts = await open();
      const key = await runningJob(parts);
      await parts.attempts.append(key, [stepEvent(0, 4), stepEvent(1, 3.5), stepEvent(2, NaN)]);
      const job = await parts.store.find(key.jobId);
      expect(job?.progress).toMatchObject({
        step: 3,
        stepCount: 20,
        phase: 'adapter',
        loss: 3.5,
        trainedTokens: 48,
      });
      expect(job?.progress.tokensPerSecond).toBeCloseTo(160);
      expect(job?.progress.remainingSeconds).toBeCloseTo(1.7);
    });
  });
});

describe('the newest events of a watched job', () => {
  const eventsOf = (...sequences: number[]): JobEvent[] =>
    sequences.map((sequence) => ({
      ...stepEvent(sequence),
      sequence,
      firstSequence: sequence,
      attempt: 1,
      final: false,
    }));

  it('are kept from the head that was read', () => {
    const recent = new RecentEvents();
    recent.follow('job', { lastSequence: 5, isComplete: false }, recent.mark);
    recent.append('job', eventsOf(6, 7));
    expect(recent.after('job', 5, 10)!.events.map(({ sequence }) => sequence)).toEqual([6, 7]);
    expect(recent.after('job', 4, 10)).toBeUndefined();
  });

  it('are kept from what comes next, where something came while the head was read', () => {
    const recent = new RecentEvents();
    const { mark } = recent;
    recent.append('another', eventsOf(1));
    recent.follow('job', { lastSequence: 5, isComplete: false }, mark);
    expect(recent.after('job', 5, 10)).toBeUndefined();
    recent.append('job', eventsOf(8, 9));
    expect(recent.after('job', 7, 10)!.events.map(({ sequence }) => sequence)).toEqual([8, 9]);
    expect(recent.after('job', 6, 10)).toBeUndefined();
    // Notifications of two commits may arrive in reverse order; and another server may have written in between.
    recent.append('job', eventsOf(6, 7));
    expect(recent.after('job', 7, 10)!.events).toHaveLength(2);
    recent.append('job', eventsOf(12));
    expect(recent.after('job', 11, 10)).toBeUndefined();
  });
});
