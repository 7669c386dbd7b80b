import type { Job } from '@relora/sdk/contract';
import { call, type Json } from './api.js';
import { el, fill, scrolling, setText } from './element.js';
import { age, duration, idOf, short } from './format.js';
import { kindOf, modelOf, progressBar, stateBadge, titleOf } from './jobParts.js';
import { Problem } from './problem.js';
import { repeat, type View } from './view.js';

const pauseMs = 2000;

/** Running jobs, and waiting jobs in their order. */
export function queueView(): View {
  const slots = el('p', { class: 'muted' });
  const problem = new Problem();
  const running = el('div', { class: 'cards' });
  const waiting = el('tbody');
  const idle = el('p', { class: 'muted' }, 'Nothing runs.');
  const nothing = el('p', { class: 'muted' }, 'Nothing waits.');

  const load = async (signal: AbortSignal): Promise<void> => {
    const [info, active] = await Promise.all([
      call('ServerService', 'getServerInfo', {}, signal),
      activeJobs(signal),
    ]);
    const runs = active.filter(({ state }) => state !== 'JOB_STATE_QUEUED');
    const queued = active.filter(({ state }) => state === 'JOB_STATE_QUEUED');
    const inUse = runs.reduce((sum, job) => sum + processesOf(job), 0);
    // Other servers of the store may run some of the jobs, so what is in use is not compared with the slots of this one.
    setText(
      slots,
      `${runs.length} running in ${inUse} ${inUse === 1 ? 'slot' : 'slots'}, ${queued.length} waiting; this server has ${info.slotCount}`,
    );
    fill(running, ...runs.map(card));
    idle.hidden = runs.length > 0;
    queued.sort((a, b) => Number(a.queuePosition) - Number(b.queuePosition));
    fill(waiting, ...queued.map(row));
    nothing.hidden = queued.length > 0;
  };
  const end = repeat((signal) => problem.of(() => load(signal), signal), pauseMs);

  const heads = ['Place', 'Job', 'Kind', 'Model', 'Priority', 'Progress', 'Waits since', 'Why'];
  return {
    title: 'Queue',
    element: el(
      'section',
      {},
      el('header', { class: 'bar' }, el('h1', {}, 'Queue'), slots),
      problem.element,
      el('h2', {}, 'Running'),
      running,
      idle,
      el('h2', {}, 'Waiting'),
      scrolling(
        'Waiting jobs',
        el(
          'table',
          { class: 'rows' },
          el('thead', {}, el('tr', {}, ...heads.map((head) => el('th', { scope: 'col' }, head)))),
          waiting,
        ),
      ),
      nothing,
    ),
    end,
  };
}

async function activeJobs(signal: AbortSignal): Promise<Json<Job>[]> {
  const states = ['JOB_STATE_QUEUED', 'JOB_STATE_STARTING', 'JOB_STATE_RUNNING'] as const;
  let all: Json<Job>[] = [];
  let pageToken = '';
  do {
    const page = await call(
      'TrainingService',
      'listJobs',
      { pageSize: 500, pageToken, states: [...states] },
      signal,
    );
    all = all.concat(page.jobs);
    pageToken = page.nextPageToken;
  } while (pageToken !== '');
  return all;
}

/** Each process has a slot; how many a job got is known once it runs. */
function processesOf({ state, execution, spec }: Json<Job>): number {
  return Number((state === 'JOB_STATE_RUNNING' ? execution?.replicas : undefined) ?? spec?.replicas ?? 1);
}

function card(job: Json<Job>): HTMLElement {
  const { progress } = job;
  return el(
    'a',
    { class: 'card', href: `/jobs/${idOf(job.name)}` },
    el('div', { class: 'spread' }, el('strong', {}, titleOf(job)), stateBadge(job.state)),
    el('div', { class: 'muted' }, [kindOf(job), modelOf(job)].filter(Boolean).join(' · ')),
    progressBar(job),
    el(
      'div',
      { class: 'muted number' },
      `${short(progress?.tokensPerSecond)} tokens/s · ${duration(progress?.remainingSeconds)} left`,
    ),
  );
}

function row(job: Json<Job>): HTMLElement {
  return el(
    'tr',
    {},
    el('td', { class: 'number' }, job.queuePosition),
    el('td', {}, el('a', { class: 'title', href: `/jobs/${idOf(job.name)}` }, titleOf(job))),
    el('td', {}, kindOf(job)),
    el('td', {}, modelOf(job)),
    el('td', { class: 'number' }, job.spec?.priority ?? 0),
    el('td', {}, progressBar(job)),
    el('td', { class: 'number' }, age(job.updateTime)),
    el('td', { class: 'muted' }, job.stateReason),
  );
}
