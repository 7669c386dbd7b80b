import { join } from 'node:path';
import { DatabaseSync } from '@photostructure/sqlite';
import { Status } from 'nice-grpc';
import { describe, expect, it } from 'vitest';
import type { JobEventBody } from '../../server/dist/jobs/job.js';
import { JobMetrics } from '../../server/dist/metrics/jobMetrics.js';
import { createMetrics } from '../../server/dist/metrics/metrics.js';
import { openApi, refusalOf } from './apiServer.js';
import { claim, execution, openParts, stepEvent, submit, type Parts } from './parts.js';
import { ofFileAlone } from './testStore.js';

function restartEvent(restart: number, seconds: number) {
  const body: JobEventBody = {
    kind: 'restart',
    step: 5 * restart,
    restart,
    deltaNorm: 0.25,
    logitChangeMax: 1e-6,
    logitChangeTolerance: 1e-4,
    momentsZeroedRatio: 1,
    ranks: [],
    effectiveRank: 3,
    modules: [
      {
        module: 'q_proj',
        deltaNorm: 0.25,
        effectiveRank: 3,
        rankAboveOnePercent: 3.5,
        measuredLayerCount: 2,
      },
    ],
    learningRateBefore: 1e-3,
    learningRateAfter: 0,
    lossBefore: 5,
    lossAfter: 5.5,
    seconds,
  };
  return { timeMs: 1_700_000_000_000, body };
}

/** A job that did restarts 1 to 4, crashed, and repeated 3 and 4. */
async function crashedJob(parts: Parts): Promise<string> {
  const { id } = await submit(parts);
  const first = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(first, execution, 0);
  for (const restart of [1, 2, 3, 4])
    await parts.attempts.append(first, [stepEvent(5 * restart - 1), restartEvent(restart, 0.1)]);
  await parts.attempts.crashed(first, 'Gone', { attemptsWithoutProgressMax: 5, retryDelayMs: 0 });
  const second = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(second, execution, 12);
  for (const restart of [3, 4]) await parts.attempts.append(second, [restartEvent(restart, 0.2)]);
  return id;
}

describe('the restarts of a job', () => {
  it('stand there once each, page by page, as the last attempt made them, and survive the server', async () => {
    const first = await openParts();
    const jobId = await crashedJob(first);
    await submit(first); // another job has none
    await first.close();

    const parts = await openParts({}, first.dataFolder);
    const { training } = await openApi({}, { parts });
    const parent = `jobs/${jobId}`;
    const pages: number[][] = [];
    const restarts = [];
    let pageToken = '';
    do {
      const page = await training.listRestarts({ parent, pageSize: 3, pageToken });
      pages.push(page.restarts.map(({ event }) => event!.restart));
      restarts.push(...page.restarts);
      pageToken = page.nextPageToken;
    } while (pageToken !== '');
    expect(pages).toEqual([[1, 2, 3], [4]]);
    expect(restarts.map(({ attempt, event }) => [attempt, event!.seconds])).toEqual([
      [1, 0.1],
      [1, 0.1],
      [2, 0.2],
      [2, 0.2],
    ]);
    expect(restarts[0]).toMatchObject({
      time: new Date(1_700_000_000_000),
      event: {
        step: 5,
        lossBefore: 5,
        lossAfter: 5.5,
        learningRateBefore: 1e-3,
        learningRateAfter: 0,
        logitChangeTolerance: 1e-4,
        modules: [{ module: 'TARGET_MODULE_Q_PROJ', rankAboveOnePercent: 3.5, measuredLayerCount: 2 }],
      },
    });
    const { events } = await parts.journal.readAfter(jobId, restarts[3]!.sequence - 1, 1);
    expect(events[0]).toMatchObject({ attempt: 2, body: { kind: 'restart', restart: 4 } });
  });

  it('are refused for a job that does not exist, and with the token of another list', async () => {
    const { parts, training } = await openApi();
    const jobId = await crashedJob(parts);
    const missing = await refusalOf((options) => training.listRestarts({ parent: 'jobs/none' }, options));
    expect(missing).toMatchObject({ code: Status.NOT_FOUND, info: { reason: 'JOB_NOT_FOUND' } });
    const { nextPageToken } = await training.listRestarts({ parent: `jobs/${jobId}`, pageSize: 1 });
    const { id } = await submit(parts);
    const swapped = await refusalOf((options) =>
      training.listRestarts({ parent: `jobs/${id}`, pageToken: nextPageToken }, options),
    );
    expect(swapped.info.reason).toBe('PAGE_TOKEN_INVALID');
  });

  it('are found by their index, not by reading the journal', async (context) => {
    ofFileAlone(context, 'the plan of the file is looked at');
    const { dataFolder, close } = await openParts();
    await close();
    const raw = new DatabaseSync(join(dataFolder, 'store.db'));
    const plan = raw
      .prepare(
        `explain query plan select * from events where job_id = 'a' and restart > 0 and not exists
           (select sequence from events as later where later.job_id = 'a'
              and later.restart = events.restart and later.sequence > events.sequence)
         order by restart limit 5`,
      )
      .all() as { detail: string }[];
    raw.close();
    expect(plan.map(({ detail }) => detail)).toEqual([
      expect.stringMatching(/^SEARCH events USING INDEX restarts /) as string,
      expect.stringMatching(/^CORRELATED SCALAR SUBQUERY/) as string,
      expect.stringMatching(/^SEARCH later USING COVERING INDEX restarts /) as string,
    ]);
  });

  it('of a journal from before there was a proof are shown without one', async () => {
    const { parts, training } = await openApi();
    const jobId = await crashedJob(parts);
    const old = { kind: 'restart', step: 5, restart: 1, deltaNorm: 0.5, logitChangeMax: 1e-7, ranks: [] };
    await parts.db
      .updateTable('events')
      .set({ body: JSON.stringify({ ...old, momentsZeroedRatio: 1, effectiveRank: 2, seconds: 1 }) })
      .where('body', 'like', '%"restart":1,%')
      .execute();
    await parts.db
      .updateTable('jobs')
      .set({
        execution: JSON.stringify({ engineVersion: '0.1.0', precision: 'int8Base', backend: 'native' }),
      })
      .where('id', '=', jobId)
      .execute();
    const { restarts } = await training.listRestarts({ parent: `jobs/${jobId}` });
    expect(restarts[0]?.event).toMatchObject({
      restart: 1,
      deltaNorm: 0.5,
      modules: [],
      lossBefore: undefined,
    });
    expect((await training.getJob({ name: `jobs/${jobId}` })).job?.execution).toMatchObject({
      engineVersion: '0.1.0',
      basePrecision: 'PRECISION_INT8_BASE',
      graphs: [],
      specSha256: '',
    });
  });

  it('are shown by metrics, also by kind of layer, until the series of the job go', async () => {
    const parts = await openParts();
    const metrics = createMetrics();
    const jobMetrics = new JobMetrics(metrics);
    jobMetrics.follow(parts.journal, parts.supervisor);
    const jobId = await crashedJob(parts);
    const text = await metrics.registry.metrics();
    for (const [name, value] of [
      ['merge_logit_tolerance', 0.0001],
      ['merge_loss_before', 5],
      ['merge_loss_after', 5.5],
      ['restart_learning_rate_before', 0.001],
      ['restart_learning_rate_after', 0],
    ] as const)
      expect(text).toContain(`relora_job_${name}{job_id="${jobId}"} ${value}\n`);
    for (const [name, value] of [
      ['merge_delta_norm', 0.25],
      ['effective_rank', 3],
      ['singular_values', 3.5],
    ] as const)
      expect(text).toContain(`relora_job_module_${name}{job_id="${jobId}",module="q_proj"} ${value}\n`);
    await parts.control.cancel(jobId, { requestId: null, version: null });
    await parts.attempts.stopped({ jobId, attempt: 2 }, 'Stopped');
    jobMetrics.forgetOld(Date.now() + 6 * 60_000);
    expect(await metrics.registry.metrics()).not.toContain('job_id=');
  });
});
