import { UsageDimension, type GetUsageRequest, type UsageRow } from '@relora/sdk/contract';
import type { DeepPartial } from '@relora/sdk/contract';
import { describe, expect, it, onTestFinished } from 'vitest';
import { spanOf } from '@relora/engine/plan';
import { recoverJobs } from '../../server/dist/trainer/recoverJobs.js';
import { addSteps, beginAttempt, endAttempt, monthsBetween } from '../../server/dist/usage/attemptUse.js';
import { releasedFolder } from '../golden/releasedFolder.js';
import { openApi, type Api } from './apiServer.js';
import { allEvents, claim, execution, openParts, stepEvent, submit, type Parts } from './parts.js';
import { stores } from './postgres.js';
import { ofFileAlone, releasedFolderReason } from './testStore.js';

const rule = { attemptsWithoutProgressMax: 3, retryDelayMs: 0 };
const { JOB, TENANT, MONTH } = UsageDimension;

/** The usage of each attempt according to a job's journal. */
async function ofJournal(parts: Parts, jobId: string) {
  const attempts = new Map<number, { startMs: number; endMs: number; tokens: number; seconds: number }>();
  for (const { attempt, timeMs, body } of await allEvents(parts, jobId)) {
    if (attempt === 0) continue;
    const found = attempts.get(attempt) ?? { startMs: timeMs, endMs: timeMs, tokens: 0, seconds: 0 };
    found.endMs = timeMs;
    if (body.kind === 'step') {
      const { tokenCount, seconds } = spanOf(body);
      found.tokens += tokenCount;
      found.seconds += seconds;
    }
    attempts.set(attempt, found);
  }
  const all = [...attempts.values()];
  const sum = (of: (attempt: (typeof all)[number]) => number) =>
    all.reduce((total, one) => total + of(one), 0);
  return {
    attemptCount: all.length,
    tokens: sum(({ tokens }) => tokens),
    // Sums of the same numbers in another order.
    stepSeconds: expect.closeTo(
      sum(({ seconds }) => seconds),
      9,
    ) as number,
    deviceMs: sum(({ startMs, endMs }) => endMs - startMs),
  };
}

const total = async (parts: Parts, by: 'job'[] = []) =>
  await parts.usage.list({ tenant: null, by, label: null, firstMonth: null, lastMonth: null }, 0, 100);

/** A job that crashed, was paused and resumed before it ended, with steps in each attempt. */
async function trainedJob(
  parts: Parts,
  labels: Record<string, string> = {},
  tenant = 'default',
): Promise<string> {
  const { id } = await submit(parts, { labels, tenant });
  for (const [attempt, end] of (['crash', 'pause', 'end'] as const).entries()) {
    const key = { jobId: id, attempt: (await claim(parts)).attempt };
    expect(key.attempt).toBe(attempt + 1);
    await parts.attempts.started(key, execution, 0);
    // The steps after the crash are repeated, and count again.
    await parts.attempts.append(key, [stepEvent(0), stepEvent(1, NaN)]);
    await parts.attempts.append(key, [stepEvent(2)]);
    if (end === 'crash') await parts.attempts.crashed(key, 'The trainer ended', rule);
    else if (end === 'pause') {
      await parts.control.pause(id);
      await parts.attempts.stopped(key, '');
      await parts.control.resume(id);
    } else await parts.attempts.succeeded(key);
  }
  return id;
}

describe.each(stores)('usage on $name', ({ url, skip }) => {
  const open = async (dataFolder?: string, settings: Record<string, string> = {}): Promise<Parts> =>
    await openParts(settings, dataFolder, undefined, await url());

  it.skipIf(skip)('of resumed jobs equals the sum over their journals', async () => {
    const parts = await open();
    const ids = [await trainedJob(parts), await trainedJob(parts, { team: 'red' })];
    const rows = await total(parts, ['job']);
    for (const id of ids)
      expect(rows.find(({ jobId }) => jobId === id)).toMatchObject(await ofJournal(parts, id));
    const [all] = await total(parts);
    expect(all).toMatchObject({
      attemptCount: 6,
      tokens: rows[0]!.tokens + rows[1]!.tokens,
      deviceMs: rows[0]!.deviceMs + rows[1]!.deviceMs,
    });
    expect(all!.tokens).toBeGreaterThan(0);
  });

  it.skipIf(skip)('stays when a job is deleted and purged, and when its name is used again', async () => {
    const parts = await open(undefined, { RELORA_UNDELETE_SECONDS: '0' });
    const id = await trainedJob(parts);
    const expected = await ofJournal(parts, id);
    await parts.jobDeletion.delete(id);
    await parts.jobDeletion.purge(id);
    expect(await parts.store.find(id)).toBeUndefined();
    expect(await total(parts, ['job'])).toMatchObject([{ jobId: id, ...expected }]);
    await submit(parts, { jobId: id });
    const key = { jobId: id, attempt: (await claim(parts)).attempt };
    await parts.attempts.started(key, execution, 0);
    await parts.attempts.append(key, [stepEvent(0)]);
    const rows = await total(parts, ['job']);
    expect(rows).toMatchObject([
      { jobId: id, ...expected },
      { jobId: id, attemptCount: 1 },
    ]);
    expect(rows[0]!.jobCreateTimeMs).not.toBe(rows[1]!.jobCreateTimeMs);
  });

  it.skipIf(skip)(
    'of a running attempt is there to its last event, and of one of a dead server no more',
    async () => {
      const parts = await open();
      const { id } = await submit(parts);
      const key = { jobId: id, attempt: (await claim(parts)).attempt };
      await parts.attempts.started(key, execution, 0);
      await parts.attempts.append(key, [stepEvent(0)]);
      const row = await parts.db.selectFrom('attempts').selectAll().executeTakeFirstOrThrow();
      // Events are stored a little after the trainer sent them; the store's clock counts.
      const deviceMs = (await parts.store.find(id))!.updateTimeMs - row.start_time_ms;
      const expected = { ...(await ofJournal(parts, id)), deviceMs };
      expect(await total(parts, ['job'])).toMatchObject([expected]);
      // The server was down for an hour.
      await parts.db
        .updateTable('jobs')
        .set((eb) => ({ update_time_ms: eb('update_time_ms', '-', 3_600_000), lease_until_ms: 1 }))
        .execute();
      await parts.db
        .updateTable('attempts')
        .set((eb) => ({ start_time_ms: eb('start_time_ms', '-', 3_600_000) }))
        .execute();
      await recoverJobs(parts);
      expect((await parts.store.find(id))!.state).toBe('queued');
      expect(await total(parts, ['job'])).toMatchObject([expected]);
    },
  );

  it.skipIf(skip)('of an attempt over months is in each of them by its time', async () => {
    const parts = await open();
    const { id } = await submit(parts);
    const row = await parts.db.selectFrom('jobs').selectAll().where('id', '=', id).executeTakeFirstOrThrow();
    const attempt = { ...row, attempt: 1 };
    const [startMs, endMs] = [Date.UTC(2026, 9, 31, 23), Date.UTC(2027, 0, 1, 2)];
    await parts.db.transaction().execute(async (trx) => {
      // Each of the two processes holds a device.
      await beginAttempt(trx, attempt, { device: 'native', processes: 2 }, startMs);
      const inNovember = { timeMs: Date.UTC(2026, 10, 3), seconds: 2, tokens: 20 };
      await addSteps(
        trx,
        attempt,
        [{ timeMs: startMs, seconds: 1, tokens: 10 }, inNovember],
        inNovember.timeMs,
      );
      await addSteps(trx, attempt, [{ ...inNovember, timeMs: endMs }], endMs);
      await endAttempt(trx, attempt, endMs);
      // It has ended already: this has no effect.
      await endAttempt(trx, attempt, endMs + 1);
    });
    const question = { tenant: null, by: ['month'] as const, label: null };
    const rows = await parts.usage.list({ ...question, firstMonth: null, lastMonth: null }, 0, 10);
    const hour = 3_600_000;
    expect(
      rows.map(({ month, deviceMs, tokens, stepSeconds }) => [
        month,
        deviceMs / 2 / hour,
        tokens,
        stepSeconds,
      ]),
    ).toEqual([
      ['2026-10', 1, 10, 1],
      ['2026-11', 30 * 24, 20, 2],
      ['2026-12', 31 * 24, 0, 0],
      ['2027-01', 2, 20, 2],
    ]);
    const some = await parts.usage.list({ ...question, firstMonth: '2026-11', lastMonth: '2026-12' }, 0, 10);
    expect(some.map(({ month }) => month)).toEqual(['2026-11', '2026-12']);
    const [all] = await total(parts);
    expect(all).toMatchObject({ attemptCount: 1, deviceMs: 2 * (endMs - startMs), tokens: 50 });
  });

  it.skipIf(skip)('is added up by the labels that jobs have at last', async () => {
    const parts = await open();
    const first = await trainedJob(parts, { team: 'red' });
    await trainedJob(parts, { team: 'blue', __proto__x: 'y' });
    await trainedJob(parts, {});
    await parts.db.transaction().execute(async (trx) => {
      const { JobChange } = await import('../../server/dist/jobs/jobChange.js');
      const change = new JobChange(trx, Date.now());
      await change.setLabels((await change.find(first))!, { team: 'blue' });
    });
    const rows = await parts.usage.list(
      { tenant: 'default', by: [], label: 'team', firstMonth: null, lastMonth: null },
      0,
      10,
    );
    expect(rows.map(({ labelValue, attemptCount }) => [labelValue, attemptCount])).toEqual([
      ['', 3],
      ['blue', 6],
    ]);
  });
});

it('of jobs of 0.1.0 is what their journals say', async (context) => {
  ofFileAlone(context, releasedFolderReason);
  const { dataFolder, remove } = releasedFolder();
  onTestFinished(remove);
  const parts = await openParts({}, dataFolder);
  const rows = await total(parts, ['job']);
  expect(rows.length).toBeGreaterThan(4);
  for (const row of rows) expect(row).toMatchObject(await ofJournal(parts, row.jobId!));
  expect(rows.some(({ tokens }) => tokens > 0)).toBe(true);
});

describe('GetUsage', () => {
  const usageOf = async ({ server }: Api, request: DeepPartial<GetUsageRequest>): Promise<UsageRow[]> => {
    const rows: UsageRow[] = [];
    for (let pageToken = ''; ;) {
      const page = await server.getUsage({ ...request, pageToken });
      rows.push(...page.rows);
      pageToken = page.nextPageToken;
      if (pageToken === '') return rows;
    }
  };

  it('groups as asked, page by page, without what others have', async () => {
    const api = await openApi();
    for (let count = 0; count < 3; count++) await trainedJob(api.parts);
    await trainedJob(api.parts, {}, 'acme');
    const byJob = await usageOf(api, { groupBy: [JOB], pageSize: 2 });
    expect(byJob).toHaveLength(3);
    expect(byJob.every(({ job, attemptCount }) => /^jobs\/job-/.test(job) && attemptCount === 3)).toBe(true);
    const month = new Date().toISOString().slice(0, 7);
    const everyone = await usageOf(api, { groupBy: [TENANT, MONTH], allTenants: true });
    expect(everyone.map(({ tenant, month, attemptCount }) => [tenant, month, attemptCount])).toEqual([
      ['acme', month, 3],
      ['default', month, 9],
    ]);
    expect(await usageOf(api, { firstMonth: '2999-01' })).toEqual([]);
  });

  it('refuses a month that is none', async () => {
    const { server } = await openApi();
    await expect(server.getUsage({ firstMonth: '2026-13', groupBy: [9 as never] })).rejects.toThrow(
      /group_by\[0\]: expected JOB, TENANT or MONTH, got UNRECOGNIZED; first_month: expected a month such as 2026-11/,
    );
  });
});

it('a time is cut at the ends of months of UTC', () => {
  expect(monthsBetween(Date.UTC(2026, 1, 28, 12), Date.UTC(2026, 2, 1)).map(({ month }) => month)).toEqual([
    '2026-02',
    '2026-03',
  ]);
  expect(monthsBetween(5, 4)).toEqual([{ month: '1970-01', fromMs: 5, untilMs: 5 }]);
});
