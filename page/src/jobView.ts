import type { Job, JobPlan, Restart } from '@relora/sdk/contract';
import { call, type Json } from './api.js';
import { ArtifactList } from './artifactList.js';
import { el, fill, setText } from './element.js';
import { age, duration, figure, idOf, short, whole } from './format.js';
import { jobActions } from './jobActions.js';
import { JobCharts } from './jobCharts.js';
import { datasetTable, evaluationTable, EventLog, restartTable, SampleList } from './jobLog.js';
import { nextList } from './jobNext.js';
import { kindOf, modelOf, progressBar, stateBadge, titleOf } from './jobParts.js';
import { planOf } from './jobUpdates.js';
import { settingsPanel } from './jobSettings.js';
import { Problem } from './problem.js';
import { JobSeries, metrics } from './series.js';
import { tabs } from './tabs.js';
import type { View } from './view.js';
import { watchJob, type Watched } from './watch.js';

/** Points per curve from the server; more than a screen shows. */
const pointsMax = 1000;
/**
 * A live curve gets one point per second. If steps are faster, the whole curve is loaded again at intervals that are long compared with the
 * loading time.
 */
const curveRefreshMs = 10_000;
const curveCostRatio = 20;
/** Events from before the page was opened that are read for the log: after a week, reading all would take long. */
const pastEventsMax = 20_000;
const jobRefreshMs = 3000;
const restartsMax = 5000;

/** One job, live. */
export function jobView(id: string): View {
  const name = `jobs/${id}`;
  const over = new AbortController();
  const { signal } = over;
  const series = new JobSeries();
  const restarts: Json<Restart>[] = [];
  const restartSteps: number[] = [];
  const charts = new JobCharts(series, restartSteps, id);
  const log = new EventLog();
  const samples = new SampleList();
  const artifacts = new ArtifactList(id);
  const restartPlace = el('div');
  const datasetPlace = el('div');
  const settings = el('div');
  const head = el(
    'div',
    { class: 'bar' },
    el('h1', {}, el('a', { href: '/jobs', class: 'crumb' }, 'Jobs'), ` ${id}`),
  );
  const live = el('span', { class: 'live', role: 'status' }, 'connecting …');
  const tiles = el('dl', { class: 'tiles' });
  const bar = el('div');
  const next = el('div');
  const problem = new Problem();

  let job: Json<Job> | undefined;
  let plan: Json<JobPlan> | undefined;
  /** The updates that are in the plan; undefined before it is loaded. */
  let plannedUpdates: string | undefined;
  /** Number of the newest event in the curves. */
  let curveSequence = 0;
  let curveDueMs = 0;
  let watch: ReturnType<typeof watchJob> | undefined;
  let expected: number | undefined;

  const showJob = (present: Json<Job>): void => {
    const isOther = job?.etag !== present.etag;
    job = present;
    if (isOther) {
      fill(
        head,
        el('h1', {}, el('a', { href: '/jobs', class: 'crumb' }, 'Jobs'), ` ${titleOf(job)}`),
        stateBadge(job.state),
        live,
        el('span', { class: 'grow' }),
        ...jobActions(job, showJob),
      );
      fill(settings, settingsPanel(job));
    }
    document.title = `${titleOf(job)} · ReLoRA`;
    fill(bar, progressBar(job, whole));
    fill(tiles, ...tilesOf(job));
    fill(datasetPlace, datasetTable(job), evaluationTable(job));
    fill(next, nextList(job, plan));
    if (plannedUpdates !== undefined) void guard(loadPlan);
  };

  const guard = (action: () => Promise<void>): Promise<void> => problem.of(action, signal);

  const loadJob = async (): Promise<void> => {
    const { job: present } = await call('TrainingService', 'getJob', { name }, signal);
    if (present !== undefined) showJob(present);
  };

  const loadCurves = async (): Promise<void> => {
    const begunMs = performance.now();
    // Not before the answer, which determines the time of the next request.
    curveDueMs = Infinity;
    try {
      const history = await call(
        'TrainingService',
        'getMetricHistory',
        { name, metrics: [...metrics], pointsMax },
        signal,
      );
      series.replace(history);
      curveSequence = Number(history.lastSequence);
      charts.update();
    } finally {
      const endedMs = performance.now();
      curveDueMs = endedMs + Math.max(curveRefreshMs, curveCostRatio * (endedMs - begunMs));
    }
  };

  const loadRestarts = async (): Promise<void> => {
    let pageToken = '';
    let all: Json<Restart>[] = [];
    do {
      const page = await call(
        'TrainingService',
        'listRestarts',
        { parent: name, pageSize: 500, pageToken },
        signal,
      );
      all = all.concat(page.restarts);
      pageToken = page.nextPageToken;
    } while (pageToken !== '' && all.length < restartsMax);
    restarts.splice(0, restarts.length, ...all);
    restartSteps.splice(0, restartSteps.length, ...all.map(({ event }) => Number(event?.step)));
    fill(restartPlace, restartTable(restarts));
    charts.update();
  };

  /** The plan follows from the settings and the updates. */
  const loadPlan = async (): Promise<void> => {
    const updates = JSON.stringify(job!.updates);
    if (updates === plannedUpdates) return;
    plannedUpdates = updates;
    const planned = await planOf(job!, signal);
    if (planned === undefined || updates !== plannedUpdates) return;
    plan = planned;
    charts.setPlan(plan);
    showJob(job!);
  };

  let refresh: ReturnType<typeof setTimeout> | undefined;
  const refreshSoon = (delayMs = jobRefreshMs): void => {
    if (delayMs === 0) {
      clearTimeout(refresh);
      refresh = undefined;
    }
    refresh ??= setTimeout(() => {
      refresh = undefined;
      void guard(loadJob);
    }, delayMs);
  };

  const onEvent = ({ event, omittedStepEvents }: Watched): void => {
    if (event === undefined || event.heartbeat) return;
    const sequence = Number(event.sequence);
    const from = sequence - Number(omittedStepEvents);
    // The journal has no gaps: missing events were lost in transit, and this must not go unnoticed.
    if (expected !== undefined && from !== expected) {
      problem.show(`Events ${expected} to ${from - 1} are missing; the curves are loaded again`);
      void guard(loadCurves);
    }
    expected = sequence + 1;
    setText(live, `live · event ${whole(sequence)}`);
    log.add(event);
    samples.add(event);
    if (sequence <= curveSequence) return;
    if (event.step) series.addStep(event.step);
    if (event.evaluation) series.addEvaluation(event.evaluation);
    if (event.restart) {
      series.addRestart(event.restart);
      void guard(loadRestarts);
    }
    if (event.artifact) void guard(async () => await artifacts.load(signal));
    if (event.final) void guard(loadCurves);
    else if (Number(omittedStepEvents) > 0 && performance.now() > curveDueMs) void guard(loadCurves);
    charts.update();
    refreshSoon(event.state ? 0 : jobRefreshMs);
  };

  const follow = (afterSequence: number): void => {
    watch = watchJob(id, afterSequence, {
      onEvent,
      onState: (state) => {
        live.className = `live ${typeof state === 'string' ? state : 'broken'}`;
        if (state === 'ended') setText(live, `ended · ${whole(watch!.sequence())} events`);
        else if (state !== 'live') setText(live, `${state.problem}; trying again`);
        else if (expected === undefined) setText(live, 'live');
        // A server that was started again may have changed the states of jobs.
        if (state === 'live') refreshSoon(0);
      },
    });
  };

  // A page in the background holds no connection, because browsers allow few per server. It continues where it stopped.
  const onVisibility = (): void => {
    if (document.hidden) watch?.stop();
    else if (watch !== undefined) follow(watch.sequence());
  };
  document.addEventListener('visibilitychange', onVisibility);

  void guard(async () => {
    await loadJob();
    await loadCurves();
    const after = Math.max(0, curveSequence - pastEventsMax);
    if (after > 0) expected = after + 1;
    follow(after);
    await Promise.all([loadRestarts(), artifacts.load(signal), loadPlan()]);
  });

  return {
    title: id,
    element: el(
      'section',
      { class: 'job' },
      head,
      problem.element,
      bar,
      tiles,
      el(
        'div',
        { class: 'with-side' },
        el(
          'div',
          {},
          charts.element,
          tabs('Details', [
            ['Events', log.element],
            ['Samples', samples.element],
            ['Restarts', restartPlace],
            ['Data sets', datasetPlace],
            ['Settings', settings],
          ]),
        ),
        el('aside', {}, el('h2', {}, 'What comes next'), next, el('h2', {}, 'Artifacts'), artifacts.element),
      ),
    ),
    end: () => {
      over.abort();
      watch?.stop();
      clearTimeout(refresh);
      charts.end();
      document.removeEventListener('visibilitychange', onVisibility);
    },
  };
}

function tilesOf(job: Json<Job>): HTMLElement[] {
  const { progress, spec, startTime, endTime } = job;
  const ran =
    startTime === undefined
      ? undefined
      : (Date.parse(endTime ?? new Date().toISOString()) - Date.parse(startTime)) / 1000;
  const isRunning = job.state === 'JOB_STATE_RUNNING';
  const tiles: [string, string, string?][] = [
    ['Loss', figure(progress?.loss)],
    ['Held-out loss', figure(progress?.evaluationLoss)],
    ...(progress?.bestStep === undefined
      ? []
      : [
          [
            'Best checkpoint',
            `${figure(progress.bestEvaluationLoss)} at step ${whole(progress.bestStep)}`,
          ] as [string, string],
        ]),
    ['Tokens', short(progress?.trainedTokens)],
    ['Tokens/s', isRunning ? short(progress?.tokensPerSecond) : '–'],
    ['Restarts', whole(progress?.restartCount)],
    ['Left', isRunning ? duration(progress?.remainingSeconds) : '–'],
    ['Since start', duration(ran)],
    ['Attempt', whole(job.attempt)],
    ['Kind', [kindOf(job), modelOf(job)].filter(Boolean).join(' · ')],
    ['Data set', spec === undefined ? '–' : idOf(spec.dataset)],
    ['Created', age(job.createTime)],
  ];
  return tiles.map(([title, value]) =>
    el('div', {}, el('dt', {}, title), el('dd', { class: 'number' }, value)),
  );
}
