import {
  JobKind,
  Metric,
  type CompareJobsResponse,
  type GetMetricHistoryResponse,
} from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { claim, execution as anyExecution, readyDataset, stepEvent } from './parts.js';
import { jobSpec, openApi, refusalOf, type Api } from './apiServer.js';

const execution = { ...anyExecution, backend: 'native', instructionSet: 'avx2' };

type Change = Parameters<typeof jobSpec>[1];

/** A running job whose trainer's events are written by the test. */
async function runningJob(api: Api, changes: Change = {}, jobId = '') {
  const { attempts } = api.parts;
  const { job } = await api.training.createJob({ jobId, spec: jobSpec('', changes) });
  const name = job!.name;
  const begin = async (step: number) => {
    const claimed = await claim(api.parts);
    const key = { jobId: claimed.id, attempt: claimed.attempt };
    await attempts.started(key, execution, step);
    return key;
  };
  return { name, begin };
}

type Events = Parameters<Api['parts']['attempts']['append']>[1];

const steps = (
  first: number,
  end: number,
  loss: (step: number) => number = (step) => 5 - step / 10,
): Events => Array.from({ length: end - first }, (_, index) => stepEvent(first + index, loss(first + index)));

const evaluation = (step: number, loss: number): Events[number] => ({
  timeMs: Date.now(),
  body: {
    kind: 'evaluation',
    step,
    loss,
    perplexity: Math.exp(loss),
    bitsPerByte: loss / Math.LN2,
    tokenCount: 64,
    seconds: 9,
  },
});

const restart = (step: number, number: number): Events[number] => ({
  timeMs: Date.now(),
  body: {
    kind: 'restart',
    step,
    restart: number,
    deltaNorm: 2,
    logitChangeMax: 1e-7,
    logitChangeTolerance: 1e-5,
    momentsZeroedRatio: 1,
    ranks: [],
    effectiveRank: 3 * number,
    modules: [],
    learningRateBefore: 1e-3,
    learningRateAfter: 0,
    lossBefore: 3,
    lossAfter: 3,
    seconds: 0.5,
  },
});

async function openWithData() {
  const api = await openApi();
  await readyDataset(api.parts);
  return api;
}

const seriesOf = ({ series }: Pick<GetMetricHistoryResponse, 'series'>, metric: Metric) =>
  series.find((each) => each.metric === metric)!;

describe('GetMetricHistory', () => {
  it('has every step of a short run as it was, and the tokens and seconds of evaluations and restarts', async () => {
    const api = await openWithData();
    const { name, begin } = await runningJob(api);
    const key = await begin(0);
    const events = [evaluation(0, 6), ...steps(0, 5), restart(5, 1), ...steps(5, 8), evaluation(8, 4)];
    await api.parts.attempts.append(key, events);

    const history = await api.training.getMetricHistory({ name });
    expect(history.bucketStepCount).toBe(1);
    expect(history.lastSequence).toBe((await api.training.getJob({ name })).job!.lastSequence);
    const losses = seriesOf(history, Metric.LOSS);
    expect(losses.points.map(({ step, last }) => [step, last])).toEqual(
      steps(0, 8).map(({ body }) => [(body as { step: number }).step + 1, (body as { loss: number }).loss]),
    );
    // 0.1 s per step, 0.5 s for the merge, none for evaluations.
    expect(losses.points[4]!.trainingSeconds).toBeCloseTo(0.5, 9);
    expect(losses.points[5]!.trainingSeconds).toBeCloseTo(1.1, 9);
    expect(losses.points[5]!.trainedTokens).toBe(16 * 6);
    const evaluations = seriesOf(history, Metric.EVALUATION_LOSS).points;
    expect(evaluations.map(({ step, trainedTokens, last }) => [step, trainedTokens, last])).toEqual([
      [0, 0, 6],
      [8, 16 * 8, 4],
    ]);
    expect(evaluations[0]!.trainingSeconds).toBe(0);
    expect(evaluations[1]!.trainingSeconds).toBeCloseTo(1.3, 9);
    expect(seriesOf(history, Metric.EFFECTIVE_RANK).points).toMatchObject([
      { step: 5, trainedTokens: 16 * 5, last: 3 },
    ]);
  });

  it('gathers a long run in buckets, with mean, least and greatest', async () => {
    const api = await openWithData();
    const { name, begin } = await runningJob(api, {
      stepCount: 1000,
      adapter: { rank: 4, cycleStepCount: 500 },
    });
    await api.parts.attempts.append(
      await begin(0),
      steps(0, 999, (step) => step),
    );
    const request = { name, metrics: [Metric.LOSS, Metric.LEARNING_RATE], pointsMax: 10 };
    const { series, bucketStepCount } = await api.training.getMetricHistory(request);
    expect(bucketStepCount).toBe(100);
    expect(series.map(({ metric }) => metric)).toEqual([Metric.LOSS, Metric.LEARNING_RATE]);
    const { points } = series[0]!;
    expect(points).toHaveLength(10);
    expect(points.reduce((sum, { valueCount }) => sum + valueCount, 0)).toBe(999);
    // Steps 100 to 199: after 101 to 200 steps.
    expect(points[1]).toMatchObject({
      step: 200,
      last: 199,
      mean: 149.5,
      min: 100,
      max: 199,
      valueCount: 100,
    });
  });

  it('counts steps that were taken again once, as they were taken last', async () => {
    const api = await openWithData();
    const { name, begin } = await runningJob(api);
    const { attempts } = api.parts;
    const first = await begin(0);
    await attempts.append(first, [...steps(0, 5), restart(5, 1), ...steps(5, 9), evaluation(9, 3)]);
    const rule = { attemptsWithoutProgressMax: 9, retryDelayMs: 0 };
    await attempts.crashed(first, 'The trainer was killed', rule);

    // It resumed from its checkpoint: later progress is lost until it is repeated.
    const second = await begin(5);
    const losses = async () => {
      const history = await api.training.getMetricHistory({ name });
      return {
        steps: seriesOf(history, Metric.LOSS).points.map(({ step, last }) => [step, last]),
        restarts: seriesOf(history, Metric.DELTA_NORM).points.map(({ step }) => step),
        evaluations: seriesOf(history, Metric.EVALUATION_LOSS).points.length,
        seconds: seriesOf(history, Metric.LOSS).points.at(-1)!.trainingSeconds,
      };
    };
    const once = [1, 2, 3, 4, 5].map((step) => [step, 5 - (step - 1) / 10]);
    expect(await losses()).toMatchObject({ steps: once, restarts: [5], evaluations: 0 });
    await attempts.append(second, [restart(5, 1), ...steps(5, 7, () => 1)]);
    const after = await losses();
    expect(after).toMatchObject({ steps: [...once, [6, 1], [7, 1]], restarts: [5], evaluations: 0 });
    expect(after.seconds).toBeCloseTo(7 * 0.1 + 0.5, 9);
  });

  it('leaves values that are not finite out and says how many', async () => {
    const api = await openWithData();
    const { name, begin } = await runningJob(api);
    await api.parts.attempts.append(
      await begin(0),
      steps(0, 4, (step) => (step === 2 ? NaN : 1)),
    );
    const losses = seriesOf(await api.training.getMetricHistory({ name }), Metric.LOSS);
    expect(losses).toMatchObject({ nonfiniteCount: 1 });
    expect(losses.points.map(({ step }) => step)).toEqual([1, 2, 4]);
  });

  it('refuses what it cannot give, and gives no more points than allowed', async () => {
    const api = await openApi({ RELORA_METRIC_POINTS_MAX: '1000' });
    await readyDataset(api.parts);
    const { name, begin } = await runningJob(api, {
      stepCount: 2000,
      adapter: { rank: 4, cycleStepCount: 500 },
    });
    await api.parts.attempts.append(await begin(0), steps(0, 600));
    const { training } = api;
    const refused = await refusalOf((options) =>
      training.getMetricHistory({ name, pointsMax: -1, metrics: [Metric.UNSPECIFIED] }, options),
    );
    expect(refused).toMatchObject({ info: { reason: 'REQUEST_INVALID' } });
    expect(refused.fields.sort()).toEqual(['metrics[0]', 'points_max']);
    expect(
      (await refusalOf((options) => training.getMetricHistory({ name: 'jobs/none' }, options))).info.reason,
    ).toBe('JOB_NOT_FOUND');
    // Ten series share the limit of a thousand points.
    const { series, bucketStepCount } = await training.getMetricHistory({ name, pointsMax: 1_000_000 });
    expect(bucketStepCount).toBe(Math.ceil(601 / 100));
    expect(seriesOf({ series }, Metric.LOSS).points).toHaveLength(Math.ceil(601 / bucketStepCount));
  });
});

describe('CompareJobs', () => {
  const reasons = ({ warnings }: CompareJobsResponse) => warnings.map(({ reason }) => reason);

  it('measures jobs against the full-rank one, at equal tokens', async () => {
    const api = await openWithData();
    const { attempts } = api.parts;
    const relora = await runningJob(api, {}, 'low-rank');
    const first = await relora.begin(0);
    const full = await runningJob(
      api,
      { kind: 'JOB_KIND_FULL_RANK', adapter: undefined, warmStart: undefined },
      'full-rank',
    );
    // Before the reference has begun there is nothing to compare with.
    await attempts.append(first, [evaluation(0, 6), ...steps(0, 10), evaluation(10, 4)]);
    const names = [relora.name, full.name];
    const before = await api.training.compareJobs({ names });
    expect(before.jobs[0]!.evaluationLossDifference).toBeUndefined();
    expect(reasons(before)).toContain('JOBS_UNFINISHED');

    await attempts.append(first, [restart(10, 1), ...steps(10, 20), evaluation(20, 2.5)]);
    await attempts.succeeded(first);
    const second = await full.begin(0);
    await attempts.append(second, [evaluation(0, 6), ...steps(0, 15), evaluation(15, 3)]);

    const compared = await api.training.compareJobs({ names, metrics: [Metric.LOSS] });
    expect(compared).toMatchObject({ reference: full.name, bucketStepCount: 1 });
    const [low, high] = compared.jobs;
    expect(low).toMatchObject({
      kind: 'JOB_KIND_RELORA',
      rank: 4,
      cycleStepCount: 5,
      state: 'JOB_STATE_SUCCEEDED',
      trainedTokens: 320,
      peakResidentBytes: 1000,
      restartCount: 1,
      effectiveRank: 3,
      evaluationLoss: 2.5,
      bestEvaluationLoss: 2.5,
      bestEvaluationStep: 20,
      evaluationTokenCount: 64,
      // Half way between 4 at 160 tokens and 2.5 at 320, minus 3.
      evaluationLossDifference: 0.25,
      differenceTokens: 240,
      tokensToReferenceLoss: 320,
    });
    expect(low!.tokensPerSecond).toBeCloseTo(320 / 2.5, 9);
    expect(low!.secondsToReferenceLoss).toBeCloseTo(2.5, 9);
    expect(low!.trainableParameterCount).toBeLessThan(high!.trainableParameterCount);
    expect(high).toMatchObject({ rank: 0, cycleStepCount: 0, evaluationLossDifference: 0 });
    expect(low!.series.map(({ metric }) => metric)).toEqual([Metric.LOSS]);
    expect(compared.differences.map(({ field }) => field)).toEqual(
      expect.arrayContaining(['kind', 'adapter.rank', 'learning_rate.peak']),
    );
    const kind = compared.differences.find(({ field }) => field === 'kind');
    expect(kind?.values).toEqual(['"JOB_KIND_RELORA"', '"JOB_KIND_FULL_RANK"']);
    expect(compared.differences.find(({ field }) => field === 'adapter.rank')?.values).toEqual(['4', '']);
    expect(reasons(compared)).toEqual(['RATES_UNTUNED', 'JOBS_UNFINISHED']);
    expect((await api.training.compareJobs({ names, reference: relora.name })).reference).toBe(relora.name);
  });

  it('warns of everything that makes it unfair', async () => {
    const api = await openWithData();
    const { job: one } = await api.training.createJob({ spec: jobSpec() });
    const batch = { sequenceLength: 16, sequenceCount: 2 };
    const { job: other } = await api.training.createJob({ spec: jobSpec('', { batch, seed: 5 }) });
    const compared = await api.training.compareJobs({ names: [one!.name, other!.name] });
    expect(reasons(compared)).toEqual([
      'SEQUENCES_DIFFER',
      'BATCHES_DIFFER',
      'TOKENS_DIFFER',
      'SEEDS_DIFFER',
      'JOBS_UNFINISHED',
    ]);
    expect(compared.warnings[1]!.message).toBe(
      `tokens in a step: 16 in ${one!.name}; 32 in ${other!.name}; compare by tokens, not by steps`,
    );
  });

  it('warns of kinds at rates that nobody chose, and not of rates that were', async () => {
    const api = await openWithData();
    const create = async (kind: JobKind, peak?: number) => {
      const isFull = kind === JobKind.FULL_RANK;
      const parts = isFull ? { adapter: undefined, warmStart: undefined } : {};
      const spec = jobSpec('', { kind, ...parts, learningRate: { peak } });
      return (await api.training.createJob({ spec })).job!.name;
    };
    const warned = async (names: string[]) =>
      (await api.training.compareJobs({ names })).warnings.filter(({ reason }) => reason === 'RATES_UNTUNED');
    const [full, relora] = [await create(JobKind.FULL_RANK), await create(JobKind.RELORA)];
    const swept = [await create(JobKind.FULL_RANK, 2e-3), await create(JobKind.RELORA, 4e-3)];
    expect((await warned([full, relora]))[0]!.message).toBe(
      `learning rate: 0.0005, the default, in ${full}; 0.001, the default, in ${relora}; a fair comparison gives each kind its own best rate, found by a sweep of each over the same data, and has several seeds`,
    );
    expect(await warned([full, swept[1]!])).toHaveLength(1);
    expect(await warned(swept)).toEqual([]);
    // One kind at several rates is a sweep, and one explicit rate for both was a choice.
    expect(await warned([relora, swept[1]!])).toEqual([]);
    expect(await warned([await create(JobKind.FULL_RANK, 1e-3), relora])).toEqual([]);
  });

  it('takes several seeds for what they are when each kind has all of them', async () => {
    const api = await openWithData();
    const names: string[] = [];
    for (const seed of [1, 2])
      for (const rank of [2, 4]) {
        const { job } = await api.training.createJob({
          spec: jobSpec('', { seed, adapter: { rank, cycleStepCount: 5 } }),
        });
        names.push(job!.name);
      }
    expect(reasons(await api.training.compareJobs({ names }))).toEqual(['JOBS_UNFINISHED']);
  });

  it('refuses one job, too many, the same twice, and a reference that is none of them', async () => {
    const api = await openApi({ RELORA_COMPARED_JOBS_MAX: '3' });
    const { training } = api;
    const fieldsOf = async (names: string[], reference = '') =>
      (await refusalOf((options) => training.compareJobs({ names, reference }, options))).fields;
    expect(await fieldsOf(['jobs/some-job'])).toEqual(['names']);
    expect(await fieldsOf(['jobs/a', 'jobs/b', 'jobs/c', 'jobs/d'])).toEqual(['names']);
    expect(await fieldsOf(['jobs/some-job', 'jobs/some-job'])).toEqual(['names']);
    expect(await fieldsOf(['jobs/some-job', 'jobs/other-job'], 'jobs/third-job')).toEqual(['reference']);
    const missing = await refusalOf((options) =>
      training.compareJobs({ names: ['jobs/some-job', 'jobs/other-job'] }, options),
    );
    expect(missing.info.reason).toBe('JOB_NOT_FOUND');
  });
});
