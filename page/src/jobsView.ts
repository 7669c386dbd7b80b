import type { Job } from '@relora/sdk/contract';
import { call, messageOf, type Json } from './api.js';
import { el, fill, scrolling, setText } from './element.js';
import { age, duration, figure, idOf, short } from './format.js';
import { isTerminal, kindOf, modelOf, progressBar, sparkline, stateBadge, titleOf } from './jobParts.js';
import { open } from './route.js';
import { toPoint } from './series.js';
import { repeat, type View } from './view.js';

const pageSize = 100;
const pauseMs = 2000;
const sparkPoints = 60;

const states = ['queued', 'starting', 'running', 'paused', 'succeeded', 'failed', 'cancelled'] as const;

interface Row {
  job: Json<Job>;
  element: HTMLTableRowElement;
  cells: HTMLElement[];
  check: HTMLInputElement;
  /** Number of the newest event when the curve was drawn. */
  drawnSequence: string | number;
}

/** All jobs: active ones are kept up to date, older ones are loaded on scrolling. */
export function jobsView(): View {
  const rows = new Map<string, Row>();
  const body = el('tbody');
  const problem = el('p', { class: 'problem', role: 'alert', hidden: true });
  const more = el('button', { class: 'more', hidden: true, click: () => void loadMore() }, 'Load older jobs');
  const compare = el('a', { class: 'button primary', href: '/compare', hidden: true });
  const count = el('span', { class: 'muted number' });
  const search = el('input', {
    type: 'search',
    placeholder: 'Filter: words of title, id or label   /',
    'aria-label': 'Filter jobs',
    input: () => show(),
  });
  const chosen = new Set<string>();
  const chips = states.map((state) =>
    el(
      'button',
      {
        class: `chip state ${state}`,
        'aria-pressed': 'false',
        click: (event) => {
          const chip = event.currentTarget as HTMLElement;
          if (!chosen.delete(state)) chosen.add(state);
          chip.setAttribute('aria-pressed', String(chosen.has(state)));
          restart();
        },
      },
      state,
    ),
  );
  const nothing = el(
    'div',
    { class: 'nothing', hidden: true },
    el('h2', {}, 'No jobs here yet'),
    el('p', {}, 'Start one from a terminal, and it appears here:'),
    el(
      'pre',
      {},
      'relora upload corpus.txt --id tales\nrelora run --dataset datasets/tales --preset demo --steps 200',
    ),
  );

  let nextToken = '';
  let generation = 0;
  const wanted = () =>
    chosen.size === 0
      ? {}
      : { states: [...chosen].map((state) => `JOB_STATE_${state.toUpperCase()}` as never) };

  /** Rows whose curves are drawn: the visible ones. */
  const inSight = new Set<string>();
  const sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const name = (target as HTMLElement).dataset.name!;
      if (isIntersecting) inSight.add(name);
      else inSight.delete(name);
    }
    void drawCurves();
  });
  const loadWhenSeen = (): void => {
    if (!more.hidden && !more.disabled && more.getBoundingClientRect().top < innerHeight) void loadMore();
  };
  addEventListener('scroll', loadWhenSeen, { passive: true });

  const put = (job: Json<Job>): void => {
    const known = rows.get(job.name);
    if (known !== undefined) return update(known, job);
    const row = makeRow(job, showChoice);
    rows.set(job.name, row);
    // The newest come first. Pages come in this order, so most rows belong at the end.
    const isLater = (element: Element): boolean =>
      String(rows.get((element as HTMLElement).dataset.name!)!.job.createTime) < String(job.createTime);
    const { lastElementChild: last } = body;
    const before = last === null || !isLater(last) ? null : [...body.children].find(isLater)!;
    body.insertBefore(row.element, before);
    sight.observe(row.element);
    update(row, job);
  };

  const load = async (signal?: AbortSignal): Promise<void> => {
    const mine = generation;
    const first = await call('TrainingService', 'listJobs', { pageSize, ...wanted() }, signal);
    if (mine !== generation) return;
    if (rows.size === 0) nextToken = first.nextPageToken;
    first.jobs.forEach(put);
    // Visible jobs that are not on the first page and can still change.
    const listed = new Set(first.jobs.map(({ name }) => name));
    const older = [...inSight].filter(
      (name) => !listed.has(name) && rows.has(name) && !isTerminal(rows.get(name)!.job),
    );
    for (const name of older) {
      const { job } = await call('TrainingService', 'getJob', { name }, signal);
      if (job !== undefined && mine === generation) put(job);
    }
    show();
    void drawCurves();
  };

  const loadMore = async (): Promise<void> => {
    if (nextToken === '') return;
    const [mine, pageToken] = [generation, nextToken];
    nextToken = '';
    more.disabled = true;
    try {
      const page = await call('TrainingService', 'listJobs', { pageSize, pageToken, ...wanted() });
      if (mine !== generation) return;
      nextToken = page.nextPageToken;
      page.jobs.forEach(put);
    } catch (error) {
      nextToken = pageToken;
      showProblem(messageOf(error));
      return;
    } finally {
      more.disabled = false;
    }
    show();
    // Still visible, so that no scrolling would load more.
    loadWhenSeen();
  };

  const restart = (): void => {
    generation++;
    rows.clear();
    inSight.clear();
    sight.disconnect();
    body.replaceChildren();
    nextToken = '';
    void load().catch((error: unknown) => showProblem(messageOf(error)));
  };

  const show = (): void => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { job, element, cells } of rows.values()) {
      setText(cells.at(-1)!, age(job.createTime));
      const text = [job.displayName, job.name, ...Object.entries(job.labels).map((pair) => pair.join('='))]
        .join(' ')
        .toLowerCase();
      element.hidden = !words.every((each) => text.includes(each));
      if (!element.hidden) shown++;
    }
    setText(count, `${shown}${nextToken === '' ? '' : '+'} ${shown === 1 ? 'job' : 'jobs'}`);
    more.hidden = nextToken === '';
    nothing.hidden = rows.size > 0 || chosen.size > 0;
    showChoice();
  };

  const showChoice = (): void => {
    const names = [...rows.values()].filter(({ check }) => check.checked).map(({ job }) => idOf(job.name));
    compare.hidden = names.length < 2;
    compare.href = `/compare?jobs=${names.map(encodeURIComponent).join(',')}`;
    setText(compare, `Compare ${names.length}`);
  };

  const showProblem = (text: string): void => {
    problem.hidden = text === '';
    setText(problem, text);
  };

  let isDrawing = false;
  const drawCurves = async (): Promise<void> => {
    if (isDrawing) return;
    isDrawing = true;
    try {
      for (const name of [...inSight]) {
        const row = rows.get(name);
        if (row === undefined || row.element.hidden || row.drawnSequence === row.job.lastSequence) continue;
        row.drawnSequence = row.job.lastSequence;
        await drawCurve(row);
      }
    } finally {
      isDrawing = false;
    }
  };

  const endRepeat = repeat(async (signal) => {
    try {
      await load(signal);
      showProblem('');
    } catch (error) {
      if (!signal.aborted) showProblem(messageOf(error));
    }
  }, pauseMs);

  const onKey = (event: KeyboardEvent): void => moveByKey(event, body, search);
  document.addEventListener('keydown', onKey);

  return {
    title: 'Jobs',
    element: el(
      'section',
      { class: 'jobs' },
      el(
        'header',
        { class: 'bar' },
        el('h1', {}, 'Jobs'),
        count,
        el('span', { class: 'grow' }),
        compare,
        search,
      ),
      el('div', { class: 'chips', role: 'group', 'aria-label': 'States' }, ...chips),
      problem,
      scrolling('Jobs', el('table', { class: 'rows' }, tableHead(), body)),
      nothing,
      more,
    ),
    end: () => {
      endRepeat();
      sight.disconnect();
      removeEventListener('scroll', loadWhenSeen);
      document.removeEventListener('keydown', onKey);
    },
  };
}

const columns = [
  '',
  'State',
  'Job',
  'Kind',
  'Model',
  'Progress',
  'Loss',
  'Held-out',
  'Curve',
  'Tokens/s',
  'Left',
  'Created',
];
const rightColumns = new Set(['Loss', 'Held-out', 'Tokens/s', 'Left', 'Created']);

const spareColumns = new Set(['Model', 'Created']);

function classOf(column: string, what = 'right number'): string {
  const classes = [rightColumns.has(column) ? what : '', spareColumns.has(column) ? 'spare' : ''];
  return [...classes, column === 'Job' ? 'what' : ''].join(' ').trim();
}

function tableHead(): HTMLElement {
  const heads = columns.map((name) =>
    el(
      'th',
      { scope: 'col', class: classOf(name, 'right') },
      name === '' ? el('span', { class: 'unseen' }, 'Chosen to compare') : name,
    ),
  );
  return el('thead', {}, el('tr', {}, ...heads));
}

function makeRow(job: Json<Job>, onCheck: () => void): Row {
  const title = titleOf(job);
  const check = el('input', { type: 'checkbox', 'aria-label': `Choose ${title}`, change: onCheck });
  const cells = columns.map((name) => el('td', { class: classOf(name) }));
  cells[0]!.append(check);
  return { job, check, cells, drawnSequence: '', element: el('tr', { 'data-name': job.name }, ...cells) };
}

function update(row: Row, job: Json<Job>): void {
  const { job: before } = row;
  row.job = job;
  const { progress } = job;
  const [, state, link, kind, model, steps, loss, heldOut, , speed, left] = row.cells as [
    HTMLElement,
    HTMLElement,
    HTMLElement,
    HTMLElement,
    HTMLElement,
    HTMLElement,
    HTMLElement,
    HTMLElement,
    HTMLElement,
    HTMLElement,
    HTMLElement,
  ];
  // The place in the queue also changes with other jobs.
  fill(
    state,
    stateBadge(job.state),
    job.queuePosition ? el('small', { class: 'number' }, ` #${job.queuePosition}`) : null,
  );
  const isNew = link.childElementCount === 0;
  if (!isNew && before.etag === job.etag && before.lastSequence === job.lastSequence) return;
  const labels = Object.entries(job.labels).map(([key, value]) => `${key}=${value}`);
  // What does not fit is cut off.
  const all = [titleOf(job), ...labels].join('\n');
  // The link may have the focus, so it is only replaced if it differs.
  if (link.title !== all) {
    link.title = all;
    fill(
      link,
      el('a', { href: `/jobs/${idOf(job.name)}`, class: 'title' }, titleOf(job)),
      job.displayName ? el('small', {}, idOf(job.name)) : null,
      ...labels.map((text) => el('span', { class: 'label' }, text)),
    );
  }
  setText(kind, kindOf(job));
  setText(model, modelOf(job));
  fill(steps, progressBar(job));
  setText(loss, figure(progress?.loss));
  setText(heldOut, figure(progress?.evaluationLoss));
  const isRunning = job.state === 'JOB_STATE_RUNNING';
  setText(speed, isRunning ? short(progress?.tokensPerSecond) : '');
  setText(left, isRunning ? duration(progress?.remainingSeconds) : '');
}

async function drawCurve(row: Row): Promise<void> {
  const { job } = row;
  try {
    const { series } = await call('TrainingService', 'getMetricHistory', {
      name: job.name,
      metrics: ['METRIC_LOSS'],
      pointsMax: sparkPoints,
    });
    const points = (series[0]?.points ?? []).map(toPoint);
    fill(
      row.cells[8]!,
      points.length < 2
        ? null
        : sparkline(points, `Loss of ${titleOf(job)}, now ${figure(points.at(-1)?.mean)}`),
    );
  } catch {
    row.drawnSequence = '';
  }
}

/** j and k move between rows, Enter opens one, x selects it, / goes to the filter. */
function moveByKey(event: KeyboardEvent, body: HTMLElement, search: HTMLInputElement): void {
  const isTyping = event.target instanceof HTMLInputElement && event.target.type !== 'checkbox';
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (isTyping) {
    if (event.key === 'Escape') search.blur();
    return;
  }
  if (event.key === '/') {
    event.preventDefault();
    search.focus();
    return;
  }
  const rows = [...body.querySelectorAll<HTMLElement>('tr:not([hidden])')];
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const present = rows[at];
  if (event.key === 'j' || event.key === 'k') {
    const next = rows[Math.min(rows.length - 1, Math.max(0, at + (event.key === 'j' ? 1 : -1)))];
    next?.querySelector<HTMLElement>('a.title')?.focus();
  } else if (event.key === 'x') present?.querySelector<HTMLInputElement>('input')?.click();
  else if (event.key === 'c') document.querySelector<HTMLElement>('a.primary:not([hidden])')?.click();
  else if (event.key === 'o' && present) open(`/jobs/${idOf(present.dataset.name!)}`);
}
