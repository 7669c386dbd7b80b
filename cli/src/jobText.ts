import {
  JobPhase,
  isTerminal,
  HeadPrecision,
  ReductionType,
  Synchronization,
  type EstimateJobResponse,
  type ExplainJobResponse,
  type Job,
} from '@relora/sdk';
import { evaluationText } from './evaluationText.js';
import { bytes, duration, figure, quantity, table, word } from './format.js';

type JobEstimate = NonNullable<EstimateJobResponse['estimate']>;
type JobSpec = NonNullable<Job['spec']>;

/** Jobs as a table. */
export function jobTable(jobs: readonly Job[]): string[] {
  if (jobs.length === 0) return ['No jobs.'];
  const rows = jobs.map((job) => [
    job.name,
    job.deleteTime === undefined ? stateText(job) : 'deleted',
    job.progress ? `${job.progress.step}/${job.progress.stepCount}` : '',
    job.progress?.loss === undefined ? '' : job.progress.loss.toFixed(3),
    job.progress?.evaluationLoss === undefined ? '' : job.progress.evaluationLoss.toFixed(3),
    job.createTime?.toISOString().replace('T', ' ').slice(0, 19) ?? '',
    job.displayName,
  ]);
  return table([['NAME', 'STATE', 'STEP', 'LOSS', 'HELD-OUT', 'CREATED', 'TITLE'], ...rows]);
}

/** Everything that a person wants to know about one job. */
export function jobDetails(job: Job): string[] {
  const { progress, spec, execution } = job;
  const rows: [string, string | undefined][] = [
    ['name', job.name],
    ['title', job.displayName],
    ['state', stateText(job)],
    ['reason', job.stateReason],
    ['failure', job.failure && `${job.failure.reason}: ${job.failure.message}`],
    ...(job.failure?.lastLines ?? []).map((line): [string, string] => ['printed', line]),
    ['queue position', job.queuePosition > 0 ? String(job.queuePosition) : undefined],
    ['step', progress && `${progress.step} of ${progress.stepCount}`],
    ['restarts', progress && String(progress.restartCount)],
    ['loss', progress?.loss?.toFixed(4)],
    ['held-out loss', progress?.evaluationLoss?.toFixed(4)],
    ...(progress?.evaluations ?? []).map((evaluation): [string, string] => [
      evaluation.name,
      `${evaluationText(evaluation)}, after ${evaluation.step} steps`,
    ]),
    ['tokens', progress && quantity(progress.trainedTokens)],
    [
      'speed',
      progress?.tokensPerSecond === undefined ? undefined : `${quantity(progress.tokensPerSecond)} tokens/s`,
    ],
    [
      'time left',
      progress?.remainingSeconds === undefined || isTerminal(job.state)
        ? undefined
        : duration(progress.remainingSeconds),
    ],
    ['checkpoint', progress?.checkpointStep === undefined ? undefined : `step ${progress.checkpointStep}`],
    [
      'best checkpoint',
      progress?.bestStep === undefined
        ? undefined
        : `step ${progress.bestStep}, held-out loss ${progress.bestEvaluationLoss?.toFixed(4)}`,
    ],
    ['ends early', spec?.stop && stopText(spec.stop)],
    ['attempt', String(job.attempt)],
    ['begun at', job.origin && `step ${job.origin.step} of ${job.origin.job}`],
    [
      'imported',
      job.imported &&
        `${job.imported.time?.toISOString() ?? ''}, ${job.imported.job} of store ${job.imported.storeId}`,
    ],
    ['model', spec && modelText(spec)],
    ...datasetRows(job),
    ...job.evaluations.flatMap(keptRows),
    ['kind', spec && kindText(spec)],
    ['batch', spec?.batch && batchText(spec.batch)],
    ['learning rate', spec?.learningRate && rateText(spec.learningRate)],
    ['computed with', spec && computedWith(spec)],
    [
      'ran on',
      execution &&
        [
          execution.backend,
          execution.instructionSet,
          `${execution.threadCount} threads`,
          execution.replicas > 1 && `${execution.replicas} processes`,
          execution.synchronization === Synchronization.EVERY_CYCLE && 'averaged at restarts',
          execution.reductionType === ReductionType.BFLOAT16 && 'gradients exchanged in bfloat16',
          word(execution.precision, 'PRECISION_'),
        ]
          .filter(Boolean)
          .join(', '),
    ],
    ['created', job.createTime?.toISOString()],
    ['started', job.startTime?.toISOString()],
    ['ended', job.endTime?.toISOString()],
    [
      'deleted',
      job.deleteTime && `${job.deleteTime.toISOString()}; purged at ${job.purgeTime?.toISOString()}`,
    ],
    ...Object.entries(job.labels).map(([key, value]): [string, string] => [`label ${key}`, value]),
  ];
  return table(rows.filter((row): row is [string, string] => Boolean(row[1])));
}

/** The result of a `relora evaluate` call. */
function keptRows({ time, model, step, datasets, choices }: Job['evaluations'][number]): [string, string][] {
  const of = `${model} after ${step} steps, ${time?.toISOString().slice(0, 16).replace('T', ' ') ?? ''}`;
  return [
    ...datasets.map((dataset) => `${dataset.dataset}: ${evaluationText({ dataset, choices: undefined })}`),
    ...(choices === undefined ? [] : [evaluationText({ choices, dataset: undefined })]),
  ].map((found) => ['evaluated', `${found} (${of})`]);
}

/** Each data set with its weight, and its result in the last evaluation. */
function datasetRows({ spec, progress }: Job): [string, string | undefined][] {
  const mixture = spec?.mixture ?? [];
  const evaluated = new Map((progress?.datasets ?? []).map((each) => [each.dataset, each]));
  const parts: { dataset: string; weight?: number | undefined }[] =
    mixture.length > 0 ? mixture : spec?.dataset ? [{ dataset: spec.dataset }] : [];
  return parts.map(({ dataset, weight }) => {
    const found = evaluated.get(dataset);
    const figures = [
      weight === undefined ? '' : `weight ${figure(weight)}`,
      found && `${figure(found.epochs)} passes`,
      found && found.tokenCount > 0 && mixture.length > 0 ? `held-out loss ${found.loss.toFixed(4)}` : '',
    ];
    return ['data set', [dataset, ...figures].filter(Boolean).join(', ')];
  });
}

/** Costs, plan and warnings. */
export function estimateText({
  estimate,
  plan,
  warnings,
  spec,
}: Pick<EstimateJobResponse, 'estimate' | 'plan' | 'warnings' | 'spec'>): string[] {
  if (estimate === undefined || plan === undefined) return [];
  const merges = plan.restartCount;
  const ratio = estimate.flopsPerToken / estimate.fullRankFlopsPerToken;
  const onCard = estimate.cardMemoryBytes > 0;
  const peak = ` (${stepsOf[estimate.peakMemoryPhase] ?? 'while weights are loaded or packed'})`;
  return [
    ...table([
      [
        'parameters',
        `${quantity(estimate.parameterCount)}, ${quantity(estimate.trainableParameterCount)} of them trained in the main phase`,
      ],
      ['tokens', `${quantity(estimate.tokenCount)}, ${figure(estimate.epochCount)} passes over the data`],
      ['steps', `${plan.stepCount}, the first ${plan.warmStartStepCount} full-rank`],
      [
        'restarts',
        merges === 0
          ? 'none'
          : `${merges}, before steps ${plan.restartSteps.slice(0, 8).join(', ')}${merges > 8 ? ' …' : ''}`,
      ],
      [
        'memory',
        `${bytes(estimate.peakMemoryBytes)} at its peak${onCard ? '' : peak}, ${bytes(estimate.memoryLimitBytes)} allowed`,
      ],
      ...(!onCard
        ? []
        : [
            [
              'memory of the card',
              `${bytes(estimate.cardMemoryBytes)} at its peak${peak}, ${bytes(estimate.cardMemoryLimitBytes)} allowed`,
            ],
          ]),
      ...(spec === undefined ? [] : [['computed with', computedWith(spec)]]),
      [
        'arithmetic',
        `${quantity(estimate.flopsPerToken)}FLOP per token, ${ratio.toFixed(2)} of a full-rank step`,
      ],
      [
        'time',
        estimate.durationSeconds === 0
          ? 'not known'
          : `${duration(estimate.durationSeconds)}, ${figure(estimate.durationSeconds / plan.stepCount)} s a step${doubtText(estimate)}`,
      ],
      ...estimate.signCosts.map(({ phase, stepRatio }) => [
        phase === JobPhase.ADAPTER ? 'LoRA-Muon' : 'Muon',
        `adds ${Math.round(100 * stepRatio)} % to the time of ${stepsOf[phase]}`,
      ]),
      ['disk', bytes(estimate.diskBytes)],
      ...(estimate.exchangedBytesPerStep > 0
        ? [['exchanged', `${bytes(estimate.exchangedBytesPerStep)} per step by each process`]]
        : []),
    ]),
    ...warnings.map(({ reason, message }) => `warning ${reason}: ${message}`),
  ];
}

const stepsOf: Partial<Record<JobPhase, string>> = {
  [JobPhase.WARM_START]: 'steps of the warm start',
  [JobPhase.ADAPTER]: 'steps with adapters',
  [JobPhase.FULL_RANK]: 'full-rank steps',
};

/** The uncertainty of the estimated time. */
function doubtText(estimate: JobEstimate): string {
  const { measuredLoadRatio: loadRatio, durationLowSeconds: low, durationHighSeconds: high } = estimate;
  if (low > 0) return `; ${duration(low)} to ${duration(high)} by the steps of the last jobs here`;
  if (loadRatio <= 0.25) return '';
  return `; perhaps less: measured while other work used ${Math.round(100 * loadRatio)} % of the processors`;
}

/** What may end a run before its last step; undefined for nothing. */
function stopText(stop: NonNullable<JobSpec['stop']>): string | undefined {
  const { patienceEvaluationCount: patience, evaluationLoss, tokenCount, seconds, deviceHours } = stop;
  const conditions = [
    patience ? `after ${patience} evaluations without a lower held-out loss` : '',
    evaluationLoss ? `at a held-out loss of ${figure(evaluationLoss)}` : '',
    tokenCount ? `after ${quantity(tokenCount)} tokens` : '',
    seconds ? `${duration(seconds)} after its start` : '',
    deviceHours ? `after ${figure(deviceHours)} device hours` : '',
  ].filter(Boolean);
  return conditions.length === 0 ? undefined : conditions.join(', or ');
}

/** Where the model comes from, and its size. */
function modelText({ model }: JobSpec): string {
  const { config, baseWeights } = model ?? {};
  const size =
    config && `${config.numHiddenLayers} layers of ${config.hiddenSize}, ${config.numAttentionHeads} heads`;
  const from = baseWeights && (baseWeights.weights || baseWeights.artifact || baseWeights.path);
  return [model?.preset, from && `begins at ${from}`, size].filter(Boolean).join(', ');
}

/** The kind of training with its main settings: rank, scale and cycles. */
function kindText({ kind, adapter, warmStart, stepCount }: JobSpec): string {
  const warmUp = warmStart?.stepCount ? [`${warmStart.stepCount} steps in full rank first`] : [];
  const low = adapter && [`rank ${adapter.rank}`, `alpha ${figure(adapter.alpha ?? 0)}`];
  const cycle = adapter?.cycleStepCount
    ? [`a restart every ${adapter.cycleStepCount} of ${stepCount} steps`]
    : [];
  return [word(kind, 'JOB_KIND_'), ...warmUp, ...(low ?? []), ...cycle].join(', ');
}

function batchText({ sequenceCount, sequenceLength, maskDocuments }: NonNullable<JobSpec['batch']>): string {
  const masked = maskDocuments ? ', documents masked' : '';
  return `${sequenceCount} sequences of ${sequenceLength} tokens${masked}`;
}

function rateText({ peak, schedule, warmupStepCount }: NonNullable<JobSpec['learningRate']>): string {
  return `${figure(peak ?? 0)} at its highest, ${word(schedule, 'SCHEDULE_KIND_')}, warm-up of ${warmupStepCount} ${warmupStepCount === 1 ? 'step' : 'steps'}`;
}

/** The settings that trade memory, time and accuracy. */
function computedWith({
  precision,
  headPrecision,
  recomputation,
  optimizer,
  adapter,
  warmStart,
}: JobSpec): string {
  const parts = [
    `precision ${word(precision, 'PRECISION_')}`,
    headPrecision === HeadPrecision.INT8 && 'head int8',
    `recomputation ${word(recomputation, 'RECOMPUTATION_')}`,
    optimizer && `moments ${word(optimizer.momentType, 'MOMENT_TYPE_')}`,
    adapter && `graph ${word(adapter.graph, 'ADAPTER_GRAPH_')}`,
    unusual('warm start by', warmStart?.stepCount ? warmStart.optimizer : undefined),
    unusual('full rank between by', adapter?.fullRankStepCount ? adapter.fullRankOptimizer : undefined),
    unusual('all weights by', optimizer?.fullRankOptimizer),
    unusual('adapters by', adapter?.adapterOptimizer),
  ];
  return parts.filter(Boolean).join(', ');
}

/** The name of an optimizer, if it is not the default. */
function unusual(what: string, optimizer: string | undefined): string {
  const name = word(optimizer ?? '', /^(FULL_RANK|ADAPTER)_OPTIMIZER_/);
  return ['', 'adamw', 'unspecified'].includes(name) ? '' : `${what} ${name}`;
}

export function stateText(job: Job): string {
  return job.state.replace('JOB_STATE_', '').toLowerCase();
}

/** Why a job waits, on a few lines. */
export function explanationText({
  message,
  queuePosition,
  slotCount,
  busySlotCount,
  estimatedStartTime,
}: ExplainJobResponse): string[] {
  const lines = [message];
  if (queuePosition > 0)
    lines.push(`Place ${queuePosition} in the queue; ${busySlotCount} of ${slotCount} slots are busy`);
  if (estimatedStartTime !== undefined) lines.push(`It may start at ${estimatedStartTime.toISOString()}`);
  return lines;
}
