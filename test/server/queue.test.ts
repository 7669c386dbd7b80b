import { describe, expect, it } from 'vitest';
import type { SealedArtifact } from '../../server/dist/artifacts/artifact.js';
import { sealArtifact } from '../../server/dist/artifacts/sealArtifact.js';
import type { FreeDevices, Places } from '../../server/dist/jobs/jobDevices.js';
import type { JobState } from '../../server/dist/jobs/job.js';
import type { AttemptKey } from '../../server/dist/jobs/jobAttempts.js';
import {
  execution,
  claim,
  newJob,
  openParts,
  processor,
  runSpec,
  statesOf,
  stepEvent,
  submit,
  temporaryFolder,
  type Parts,
  onProcessors,
} from './parts.js';
import { stores } from './postgres.js';

/** Cards that all serve FP8. */
const placesOf = (processors: Places, cards: Places) => ({ processors, cards, fp8Cards: cards });

describe.each(stores)('on $name', ({ url, skip }) => {
  /** Every test has its own store. */
  const open = async (
    settings: Record<string, string> = {},
    dataFolder?: string,
    storeUrl?: string,
  ): Promise<Parts> => await openParts(settings, dataFolder, undefined, storeUrl ?? (await url()));

  describe.skipIf(skip)('submitting', () => {
    it('a repeated request id gives the first job, also after a restart and when the queue is full', async () => {
      const dataFolder = temporaryFolder();
      const request = { requestId: 'a2b8', requestDigest: 'digest of the request' };
      const storeUrl = await url();
      const first = await open({ RELORA_QUEUE_JOBS_MAX: '1' }, dataFolder, storeUrl);
      const { id } = await submit(first, request);
      await first.close();
      const parts = await open({ RELORA_QUEUE_JOBS_MAX: '1' }, dataFolder, storeUrl);
      expect(await parts.queue.submit(newJob(request))).toMatchObject({ isRepeated: true, job: { id } });
      expect(await parts.queue.submit(newJob({ ...request, requestDigest: 'another' }))).toBe('conflict');
      expect(await parts.queue.submit(newJob())).toBe('full');
      expect(await parts.store.countByState()).toMatchObject({ queued: 1 });
    });

    it('a hundred equal requests at once make one job', async () => {
      const parts = await open();
      const request = newJob({ requestId: 'same' });
      const answers = await Promise.all(
        Array.from({ length: 100 }, async () => await parts.queue.submit(request)),
      );
      const jobs = answers.flatMap((answer) =>
        typeof answer !== 'string' && 'job' in answer ? [answer] : [],
      );
      expect(jobs).toHaveLength(100);
      expect(new Set(jobs.map(({ job }) => job.id)).size).toBe(1);
      expect(jobs.filter(({ isRepeated }) => !isRepeated)).toHaveLength(1);
    });

    it('an id that exists is taken, and made ids sort by time', async () => {
      const parts = await open();
      await submit(parts, { jobId: 'my-job' });
      expect(await parts.queue.submit(newJob({ jobId: 'my-job' }))).toBe('taken');
      const ids: string[] = [];
      for (let count = 0; count < 5; count++) {
        ids.push((await submit(parts)).id);
        await new Promise((resolve) => setTimeout(resolve, 2));
      }
      expect([...ids].sort()).toEqual(ids);
      expect(ids.every((id) => /^[a-z][a-z0-9-]{3,62}$/.test(id))).toBe(true);
    });
  });

  describe.skipIf(skip)('claiming', () => {
    it('goes by priority, then age, and gives a job once, however many ask at once', async () => {
      const parts = await open();
      for (const [jobId, priority] of [
        ['old-low', -5],
        ['first', 0],
        ['second', 0],
        ['high', 7],
      ] as const) {
        await submit(parts, { jobId, spec: runSpec('', { priority }) });
      }
      expect((await claim(parts)).id).toBe('high');
      expect((await claim(parts)).id).toBe('first');
      const claims = await Promise.all(
        [1, 2, 3, 4].map(async () => await parts.queue.claimNext(onProcessors)),
      );
      const ids = claims.flatMap((result) => ('job' in result ? [result.job.id] : []));
      expect(ids.sort()).toEqual(['old-low', 'second']);
      expect(await parts.queue.claimNext(onProcessors)).toEqual({ notBeforeMs: null });
    });

    it('takes turns between owners within a priority, as the places in the queue say', async () => {
      const parts = await open();
      const jobs = [
        ['a1', 'anna'],
        ['a2', 'anna'],
        ['a3', 'anna'],
        ['b1', 'berta'],
        ['b2', 'berta'],
        ['c1', 'clara'],
      ] as const;
      for (const [jobId, owner] of jobs) {
        await submit(parts, { jobId });
        await parts.db.updateTable('jobs').set({ owner }).where('id', '=', jobId).execute();
      }
      await submit(parts, { jobId: 'urgent', spec: runSpec('', { priority: 1 }) });
      const order = ['urgent', 'a1', 'b1', 'c1', 'a2', 'b2', 'a3'];
      for (const [index, id] of order.entries())
        expect((await parts.store.find(id))!.queuePosition).toBe(index + 1);
      for (const id of order) expect((await claim(parts)).id).toBe(id);
    });

    it('leaves jobs beyond the limit of their owner in the queue, however many ask at once', async () => {
      const parts = await open({ RELORA_OWNER_RUNNING_MAX: '2' });
      const ids: string[] = [];
      for (let index = 0; index < 4; index++) ids.push((await submit(parts)).id);
      const claims = await Promise.all(
        [1, 2, 3, 4].map(async () => await parts.queue.claimNext(onProcessors)),
      );
      const claimed = claims.flatMap((result) => ('job' in result ? [result.job] : []));
      expect(claimed).toHaveLength(2);
      expect(claims.filter((result) => !('job' in result))).toEqual([
        { notBeforeMs: null },
        { notBeforeMs: null },
      ]);
      const waiting = (await parts.store.find(ids[2]!))!;
      expect(await parts.explainer.explain(waiting)).toMatchObject({
        reason: 'ownerLimit',
        ownerRunningCount: 2,
        ownerRunningMax: 2,
        message: '2 jobs of the same owner run, and no more than 2 may: one of them must end',
      });
      const { id: jobId, attempt } = claimed[0]!;
      await parts.attempts.failed({ jobId, attempt }, { reason: 'TASK_ERROR', message: '' });
      expect((await claim(parts)).id).toBe(ids[2]);
    });

    it('is explained: what a job waits for, and from when it may run', async () => {
      const parts = await open({ RELORA_SLOTS: '1' });
      const { id } = await submit(parts);
      const explain = async (jobId: string) =>
        await parts.explainer.explain((await parts.store.find(jobId))!);
      expect(await explain(id)).toMatchObject({ reason: 'startsNext', queuePosition: 1 });
      const { attempt } = await claim(parts);
      expect(await explain(id)).toMatchObject({ reason: 'notWaiting', message: 'The job is starting' });
      const next = (await submit(parts)).id;
      const last = (await submit(parts)).id;
      expect(await explain(next)).toMatchObject({
        reason: 'slotsBusy',
        busySlotCount: 1,
        estimatedStartMs: null,
      });
      const key = { jobId: id, attempt };
      await parts.attempts.started(key, execution, 0);
      await parts.attempts.append(key, [stepEvent(0)]);
      const { progress, updateTimeMs } = (await parts.store.find(id))!;
      const { estimatedStartMs } = await explain(next);
      // Counted from the step that it is based on, by the store's clock; whole milliseconds against fractional seconds.
      expect(estimatedStartMs! - updateTimeMs).toBeCloseTo(progress.remainingSeconds! * 1000, -1);
      expect(await explain(last)).toMatchObject({ queuePosition: 2, estimatedStartMs: null });
      await parts.attempts.crashed(key, 'The trainer ended', {
        attemptsWithoutProgressMax: 3,
        retryDelayMs: 60_000,
      });
      // Two other jobs take the slot before, for an unknown time.
      const waiting = await explain(id);
      expect(waiting).toMatchObject({ reason: 'backingOff', estimatedStartMs: null });
      expect(waiting.notBeforeMs).toBeGreaterThan(Date.now() + 50_000);
      await parts.control.pause(id);
      expect(await explain(id)).toMatchObject({
        reason: 'notWaiting',
        message: 'The job is paused: resume it',
      });
    });

    it('foresees the start by what is left of those before it: by their own rate, or by their plan', async () => {
      const planned = 3600; // of every job, by its plan
      const machine = { devices: () => [processor('native')], secondsOf: () => planned };
      const parts = await openParts({ RELORA_SLOTS: '1' }, undefined, undefined, await url(), null, machine);
      // Several servers know each other's jobs; a single one knows its own.
      await parts.db
        .updateTable('servers')
        .set({ devices: JSON.stringify([processor('native')]) })
        .execute();
      const first = await submit(parts);
      const key = { jobId: first.id, attempt: (await claim(parts)).attempt };
      const others = [await submit(parts), await submit(parts), await submit(parts)];
      const afterMs = async (id: string, fromMs: number): Promise<number> => {
        const { estimatedStartMs, reason } = await parts.explainer.explain((await parts.store.find(id))!);
        expect(reason).toBe('slotsBusy');
        return estimatedStartMs! - fromMs;
      };
      const startMs = (await parts.store.find(first.id))!.updateTimeMs;
      expect(await afterMs(others[0]!.id, startMs)).toBeCloseTo(planned * 1000, -1);
      expect(await afterMs(others[2]!.id, startMs)).toBeCloseTo(3 * planned * 1000, -1);

      // The first reports its own rate, and an interrupted one has half of its steps done.
      await parts.attempts.started(key, execution, 0);
      await parts.attempts.append(key, [stepEvent(0)]);
      const { progress, updateTimeMs } = (await parts.store.find(first.id))!;
      const leftMs = progress.remainingSeconds! * 1000;
      expect(await afterMs(others[0]!.id, updateTimeMs)).toBeCloseTo(leftMs, -1);
      expect(await afterMs(others[1]!.id, updateTimeMs)).toBeCloseTo(leftMs + planned * 1000, -1);
      await parts.db
        .updateTable('jobs')
        .set({ progress: JSON.stringify({ ...progress, tokensPerSecond: null, checkpointStep: 10 }) })
        .where('id', '=', others[0]!.id)
        .execute();
      expect(await afterMs(others[1]!.id, updateTimeMs)).toBeCloseTo(leftMs + (planned / 2) * 1000, -1);
    });

    it('keeps free places for a job that needs several at once, and says so', async () => {
      const parts = await open();
      const gang = await submit(parts, { spec: runSpec('', { replicas: 2, device: 'native' }) });
      const small = await submit(parts, { spec: runSpec('', { device: 'native' }) });
      const onCard = await submit(parts, { spec: runSpec('', { device: 'cuda' }) });
      const claimOn = async (free: number, count = 2, names: FreeDevices['free'] = ['native']) => {
        const claimed = await parts.queue.claimNext({
          ...onProcessors,
          free: names,
          places: placesOf({ free, count }, { free: 1, count: 1 }),
        });
        return 'job' in claimed ? claimed.job.id : null;
      };
      expect(await claimOn(1)).toBeNull();
      expect((await parts.store.find(gang.id))!.stateReason).toBe(
        'Waits for 2 slots at once, of which 1 is free and kept for it',
      );
      // A card is not a slot for it.
      expect(await claimOn(1, 2, ['cuda', 'native'])).toBe(onCard.id);
      // A server without that many slots leaves it to others.
      expect(await claimOn(1, 1)).toBe(small.id);
      expect(await claimOn(2)).toBe(gang.id);
    });

    it('keeps free cards for a job that needs several at once, and gives places on processors to those behind it', async () => {
      const parts = await open();
      const gang = await submit(parts, { spec: runSpec('', { replicas: 2, device: 'cuda' }) });
      const small = await submit(parts, { spec: runSpec('', { device: 'cuda' }) });
      const ranks = await submit(parts, { spec: runSpec('', { replicas: 2, device: 'native' }) });
      const claimOn = async (
        cards: FreeDevices['places'],
        names: FreeDevices['free'] = ['cuda', 'native'],
      ) => {
        const claimed = await parts.queue.claimNext({ ...onProcessors, free: names, places: cards });
        return 'job' in claimed ? [claimed.job.id, claimed.device, claimed.processes] : null;
      };
      const two = { free: 2, count: 2 };
      const oneOfTwo = { free: 1, count: 2 };
      expect(await claimOn(placesOf(oneOfTwo, oneOfTwo))).toBeNull();
      expect((await parts.store.find(gang.id))!.stateReason).toBe(
        'Waits for 2 cards at once, of which 1 is free and kept for it',
      );
      expect((await parts.store.find(ranks.id))!.stateReason).toBe(
        'Waits for 2 slots at once, of which 1 is free and kept for it',
      );
      expect(await claimOn(placesOf(two, oneOfTwo))).toEqual([ranks.id, 'native', 2]);
      // A server without that many cards leaves it to others.
      expect(await claimOn(placesOf(two, { free: 1, count: 1 }))).toEqual([small.id, 'cuda', 1]);
      expect(await claimOn(placesOf(two, two))).toEqual([gang.id, 'cuda', 2]);
    });

    it('keeps a job in FP8 for cards that serve it, and others of the cards do not wait for it', async () => {
      const parts = await open();
      const inFp8 = await submit(parts, { spec: runSpec('', { device: 'cuda', precision: 'fp8Base' }) });
      const auto = await submit(parts, { spec: runSpec('', { precision: 'fp8Base' }) });
      const others = [];
      for (let i = 0; i < 2; i++)
        others.push((await submit(parts, { spec: runSpec('"precision":"fp8Base"', { device: 'cuda' }) })).id);
      const two = { free: 2, count: 2 };
      const claimWith = async (fp8Cards: Places) => {
        const places = { processors: two, cards: two, fp8Cards };
        const claimed = await parts.queue.claimNext({
          ...{ free: ['cuda', 'native'], places, pins: null },
          resolve: () => (fp8Cards.count === 0 ? 'native' : 'cuda'),
        });
        return 'job' in claimed ? [claimed.job.id, claimed.device] : null;
      };
      expect(await claimWith({ free: 0, count: 1 })).toEqual([others[0], 'cuda']);
      expect(await claimWith({ free: 0, count: 0 })).toEqual([others[1], 'cuda']);
      expect(await claimWith({ free: 0, count: 0 })).toBeNull();
      expect(await claimWith({ free: 1, count: 1 })).toEqual([inFp8.id, 'cuda']);
      expect(await claimWith({ free: 1, count: 1 })).toEqual([auto.id, 'cuda']);
    });

    it('gives a job that resumes fewer places where it says so', async () => {
      const parts = await open();
      const changes = { replicas: 2, replicasMin: 1, device: 'native' } as const;
      const { id } = await submit(parts, { spec: runSpec('', changes) });
      const on = async (free: number) =>
        await parts.queue.claimNext({
          ...onProcessors,
          places: placesOf({ free, count: 2 }, { free: 0, count: 0 }),
        });
      expect(await on(1)).not.toHaveProperty('job'); // it begins with all
      const claimed = await on(2);
      if (!('job' in claimed)) throw new Error('Nothing to claim');
      expect(claimed.processes).toBe(2);
      await parts.attempts.crashed({ jobId: id, attempt: claimed.job.attempt }, 'The trainer ended', {
        attemptsWithoutProgressMax: 3,
        retryDelayMs: 0,
      });
      expect(await on(1)).toMatchObject({ job: { id, attempt: 2 }, processes: 1 });
    });

    it('leaves a job that crashed alone until its delay is over', async () => {
      const parts = await open();
      const { id } = await submit(parts);
      const { attempt } = await claim(parts);
      const before = parts.leases.now();
      await parts.attempts.crashed({ jobId: id, attempt }, 'The trainer ended', {
        attemptsWithoutProgressMax: 3,
        retryDelayMs: 60_000,
      });
      const waiting = await parts.queue.claimNext(onProcessors);
      if ('job' in waiting) throw new Error('Claimed too early');
      expect(waiting.notBeforeMs).toBeGreaterThanOrEqual(before + 60_000);
    });
  });

  describe.skipIf(skip)('a write of a trainer', () => {
    it('is refused when the job has another attempt or none, and changes nothing', async () => {
      const parts = await open();
      const { id } = await submit(parts);
      const old = { jobId: id, attempt: (await claim(parts)).attempt };
      await parts.attempts.crashed(old, 'The trainer ended', {
        attemptsWithoutProgressMax: 3,
        retryDelayMs: 0,
      });
      expect(await parts.attempts.append(old, [stepEvent(0)])).toBe('stale'); // queued: no attempt may write
      const next = await claim(parts);
      const before = await parts.store.find(id);
      const artifact: SealedArtifact = {
        id: 'merged-model-1',
        format: 'huggingFace',
        weightType: 'float32',
        castErrorMax: 0,
        cycle: 1,
        step: 1,
        files: [],
      };
      for (const write of [
        parts.attempts.append(old, [stepEvent(0)]),
        parts.attempts.succeeded(old),
        parts.attempts.failed(old, { reason: 'X', message: '' }),
        sealArtifact(parts.attempts, old, artifact),
        parts.attempts.stopped(old, ''),
      ]) {
        expect(await write).toBe('stale');
      }
      expect(await parts.store.find(id)).toEqual(before);
      expect(await parts.attempts.append({ jobId: id, attempt: next.attempt }, [stepEvent(0)])).toMatchObject(
        {
          lastSequence: before!.lastSequence + 1,
        },
      );
    });
  });

  describe.skipIf(skip)('steering', () => {
    it('a cancel is carried out though the trainer ends for another reason at that moment', async () => {
      const parts = await open();
      const ends = {
        stopped: async (key: AttemptKey) => await parts.attempts.stopped(key, ''),
        diskFull: async (key: AttemptKey) =>
          await parts.attempts.pausedForStorage(key, 'STORAGE_FULL', 'The disk is full'),
        noDevice: async (key: AttemptKey) =>
          await parts.attempts.pausedForDevice(key, 'DEVICE_NOT_FOUND', 'No card'),
        notStarted: async (key: AttemptKey) => await parts.attempts.notStarted(key, 'No trainer', 0),
        crashed: async (key: AttemptKey) =>
          await parts.attempts.crashed(key, 'It ended', { attemptsWithoutProgressMax: 3, retryDelayMs: 0 }),
      };
      for (const [name, end] of Object.entries(ends)) {
        const { id } = await submit(parts);
        const { attempt } = await claim(parts);
        await parts.attempts.started({ jobId: id, attempt }, execution, 0);
        await parts.control.cancel(id);
        await end({ jobId: id, attempt });
        expect((await parts.store.find(id))!.state, name).toBe('cancelled');
      }
    });

    /** Brings a job to each state; lists what each order does there. */
    const expected: Record<JobState, { pause: string; resume: string; cancel: string }> = {
      queued: { pause: 'paused', resume: 'wrongState', cancel: 'cancelled' },
      starting: { pause: 'starting', resume: 'wrongState', cancel: 'starting' },
      running: { pause: 'running', resume: 'wrongState', cancel: 'running' },
      paused: { pause: 'paused', resume: 'queued', cancel: 'cancelled' },
      succeeded: { pause: 'wrongState', resume: 'wrongState', cancel: 'wrongState' },
      failed: { pause: 'wrongState', resume: 'wrongState', cancel: 'wrongState' },
      cancelled: { pause: 'wrongState', resume: 'wrongState', cancel: 'cancelled' },
    };
    const orders = ['pause', 'resume', 'cancel'] as const;

    it.each(Object.keys(expected) as JobState[])(
      'does the right thing to a job that is %s',
      async (state) => {
        for (const order of orders) {
          const parts = await open();
          const id = await jobIn(parts, state);
          const result = await parts.control[order](id);
          expect(result.outcome === 'done' ? result.job.state : result.outcome, order).toBe(
            expected[state][order],
          );
          if (result.outcome === 'done' && (state === 'starting' || state === 'running'))
            expect(result.job.stopRequest).toBe(order);
          await parts.close();
        }
      },
    );

    it('a repeated request id acts once, and belongs to one order of one job', async () => {
      const parts = await open();
      const { id } = await submit(parts);
      await parts.control.pause(id, { requestId: 'p' });
      await parts.control.resume(id, { requestId: 'r' });
      expect(await parts.control.pause(id, { requestId: 'p' })).toMatchObject({
        outcome: 'done',
        job: { state: 'queued' },
      });
      expect(await parts.control.cancel(id, { requestId: 'p' })).toEqual({ outcome: 'conflict' });
      expect(await statesOf(parts, id)).toEqual(['queued', 'paused', 'queued']);
    });

    it('acts only on the version that was seen', async () => {
      const parts = await open();
      const { id, version } = await submit(parts);
      await parts.control.pause(id, { version });
      expect(await parts.control.resume(id, { version })).toMatchObject({
        outcome: 'changed',
        job: { state: 'paused' },
      });
      expect(await parts.control.pause('job-none')).toEqual({ outcome: 'notFound' });
    });

    it('a cancel overrides a pause that is not yet done, not the other way round', async () => {
      const parts = await open();
      const id = await jobIn(parts, 'running');
      await parts.control.pause(id);
      expect(await parts.control.cancel(id)).toMatchObject({
        outcome: 'done',
        job: { stopRequest: 'cancel' },
      });
      expect((await parts.control.pause(id)).outcome).toBe('wrongState');
      await parts.attempts.stopped({ jobId: id, attempt: 1 }, '');
      expect((await parts.store.find(id))?.state).toBe('cancelled');
    });
  });

  describe.skipIf(skip)('lists', () => {
    it('pages have every job once, in order, though jobs are created between them', async () => {
      const parts = await open();
      const ids: string[] = [];
      for (let count = 0; count < 7; count++) ids.push((await submit(parts)).id);
      for (const order of ['newestFirst', 'oldestFirst'] as const) {
        const known = (
          await parts.store.list({ states: [], labels: {}, order, after: null, jobsMax: 500 })
        ).jobs.map(({ id }) => id);
        const seen: string[] = [];
        let after = null;
        do {
          const page = await parts.store.list({ states: [], labels: {}, order, after, jobsMax: 3 });
          seen.push(...page.jobs.map(({ id }) => id));
          after = page.next;
          if (order === 'newestFirst') await submit(parts);
        } while (after !== null);
        expect(seen).toEqual(known);
      }
    });

    it('filter by state and by labels, whatever letters these have', async () => {
      const parts = await open();
      const labels = { 'team"\'); drop table jobs; --': 'a b', __proto__x: '1', size: '10' };
      const { id } = await submit(parts, { labels });
      await submit(parts, { labels: { size: '11' } });
      const find = async (wanted: Record<string, string>, states: JobState[] = []) =>
        (
          await parts.store.list({ states, labels: wanted, order: 'newestFirst', after: null, jobsMax: 10 })
        ).jobs.map((job) => job.id);
      expect(await find(labels)).toEqual([id]);
      expect(await find({ size: '12' })).toEqual([]);
      expect(await find({}, ['paused', 'failed'])).toEqual([]);
      expect(await find({}, ['queued'])).toHaveLength(2);
      expect((await parts.store.find(id))?.labels).toEqual(labels);
    });
  });
});

async function jobIn(parts: Parts, state: JobState): Promise<string> {
  const { id } = await submit(parts);
  if (state === 'queued') return id;
  if (state === 'paused' || state === 'cancelled') {
    await (state === 'paused' ? parts.control.pause(id) : parts.control.cancel(id));
    return id;
  }
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  if (state === 'starting') return id;
  await parts.attempts.started(key, execution, 0);
  if (state === 'succeeded') await parts.attempts.succeeded(key);
  if (state === 'failed')
    await parts.attempts.failed(key, { reason: 'TRAINING_DIVERGED', message: 'Diverged' });
  return id;
}
