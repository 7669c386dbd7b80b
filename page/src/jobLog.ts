import type { Job, JobEvent, NamedEvaluation, Restart } from '@relora/sdk/contract';
import type { Json } from './api.js';
import { el, fill, scrolling } from './element.js';
import { bytes, clock, dateTime, duration, figure, idOf, whole, word } from './format.js';
import { stateBadge } from './jobParts.js';

type Event = Json<JobEvent>;

/** Events that are kept and shown: a person does not read more, and each costs a row. */
const eventsMax = 2000;
const rowsMax = 300;

/** The events of a job except steps: newest first, of one kind or of all. */
export class EventLog {
  readonly element: HTMLElement;
  private readonly events: Event[] = [];
  private readonly body = el('tbody');
  private readonly kind = el('select', { 'aria-label': 'Kind', change: () => this.show() });
  private readonly kinds = new Set<string>();

  constructor() {
    fill(this.kind, el('option', { value: '' }, 'All kinds'));
    const heads = ['#', 'Time', 'Kind', 'What'];
    this.element = el(
      'div',
      {},
      el('div', { class: 'chips' }, this.kind),
      el(
        'table',
        { class: 'rows log' },
        el('thead', {}, el('tr', {}, ...heads.map((head) => el('th', { scope: 'col' }, head)))),
        this.body,
      ),
    );
  }

  add(event: Event): void {
    const kind = kindOf(event);
    if (kind === 'step' || kind === 'heartbeat' || kind === '') return;
    if (!this.kinds.has(kind)) {
      this.kinds.add(kind);
      this.kind.append(el('option', { value: kind }, kind));
    }
    this.events.push(event);
    if (this.events.length > eventsMax) this.events.shift();
    if (this.kind.value !== '' && this.kind.value !== kind) return;
    this.body.prepend(row(event, kind));
    while (this.body.childElementCount > rowsMax) this.body.lastElementChild!.remove();
  }

  private show(): void {
    const wanted = this.events.filter((event) => this.kind.value === '' || kindOf(event) === this.kind.value);
    fill(
      this.body,
      ...wanted
        .slice(-rowsMax)
        .reverse()
        .map((event) => row(event, kindOf(event))),
    );
  }
}

const kinds = [
  'state',
  'step',
  'evaluation',
  'namedEvaluation',
  'restart',
  'checkpoint',
  'artifact',
  'sample',
  'warning',
  'heartbeat',
  'plan',
  'update',
  'stop',
  'documents',
] as const;

export function kindOf(event: Event): string {
  return kinds.find((kind) => event[kind] !== undefined) ?? '';
}

function row(event: Event, kind: string): HTMLElement {
  return el(
    'tr',
    { class: kind === 'warning' || event.state?.failure ? 'caution' : '' },
    el('td', { class: 'number muted' }, whole(event.sequence)),
    el('td', { class: 'number', title: dateTime(event.time) }, clock(event.time)),
    el('td', {}, kind),
    el('td', {}, ...describe(event)),
  );
}

function describe(event: Event): (string | HTMLElement)[] {
  const {
    state,
    evaluation,
    namedEvaluation,
    restart,
    checkpoint,
    artifact,
    sample,
    warning,
    plan,
    update,
    stop,
    documents,
  } = event;
  if (state) {
    const why = state.failure ? `${state.failure.reason}: ${state.failure.message}` : state.reason;
    return [stateBadge(state.to), ` ${why}`];
  }
  if (evaluation)
    return [
      `step ${whole(evaluation.step)}: held-out loss ${figure(evaluation.loss)}, ${figure(evaluation.bitsPerByte)} bits per byte, in ${duration(evaluation.seconds)}`,
    ];
  if (namedEvaluation)
    return [
      `step ${whole(namedEvaluation.step)}: ${namedEvaluation.name} ${evaluationText(namedEvaluation)}, in ${duration(namedEvaluation.seconds)}`,
    ];
  if (restart)
    return [
      `restart ${restart.restart} before step ${whole(restart.step)}: effective rank ${figure(restart.effectiveRank)}, largest change of a logit ${figure(restart.logitChangeMax)}`,
    ];
  if (checkpoint)
    return [
      `resumes with step ${whole(checkpoint.step)}, ${bytes(checkpoint.sizeBytes)} in ${duration(checkpoint.seconds)}${checkpoint.best?.step === checkpoint.step ? ', the best so far' : ''}`,
    ];
  if (update)
    return [
      `from step ${whole(update.step)} on ${whole(update.stepCount)} steps, rate ${figure(update.learningRateFactor)}x`,
    ];
  if (documents)
    return [
      documents.isSpike
        ? `the loss jumped at step ${whole(documents.step)}; explain it with relora explain --step ${documents.step}`
        : `${whole(documents.documentCount)} documents of steps ${whole(documents.firstStep)} to ${whole(documents.step)}`,
    ];
  if (stop)
    return [
      `ends early after step ${whole(stop.step)} by ${word(stop.reason, 'STOP_REASON')}${Number(stop.limit) === 0 ? '' : `: ${figure(stop.value)} of ${figure(stop.limit)}`}`,
    ];
  if (artifact) return [`${artifact.artifact.split('/').at(-1)}, ${bytes(artifact.sizeBytes)}`];
  if (sample)
    return [`step ${whole(sample.step)}: `, el('q', {}, `${sample.prompt}${sample.text}`.slice(0, 160))];
  if (warning) return [`${warning.reason}: ${warning.message}`];
  if (plan)
    return [
      `${word(plan.precision, 'PRECISION')}, base ${word(plan.basePrecision, 'PRECISION')}, ${plan.instructionSet || 'no instruction set'}`,
    ];
  return [];
}

/** Texts sampled while training: newest first. */
export class SampleList {
  readonly element = el(
    'div',
    { class: 'samples' },
    el('p', { class: 'muted' }, 'No samples yet. A job samples where `sample.every_step_count` says so.'),
  );
  private count = 0;

  add({ sample, time }: Event): void {
    if (!sample) return;
    if (this.count++ === 0) this.element.replaceChildren();
    this.element.prepend(
      el(
        'article',
        { class: 'sample' },
        el('header', { class: 'muted number' }, `after step ${whole(sample.step)} · ${clock(time)}`),
        el('p', {}, el('span', { class: 'prompt' }, sample.prompt), sample.text),
      ),
    );
    if (this.element.childElementCount > rowsMax) this.element.lastElementChild!.remove();
  }
}

/** The result of a named evaluation. */
export function evaluationText({ dataset, choices }: Json<NamedEvaluation>): string {
  return choices
    ? `${figure(100 * Number(choices.accuracy))} % of ${whole(choices.questionCount)} questions right`
    : `loss ${figure(dataset?.loss)}, perplexity ${figure(dataset?.perplexity)}`;
}

/** The last result of each named evaluation; null if the job has none. */
export function evaluationTable({ spec, progress }: Json<Job>): HTMLElement | null {
  if ((spec?.evaluations ?? []).length === 0) return null;
  const found = progress?.evaluations ?? [];
  return el(
    'table',
    {},
    el(
      'thead',
      {},
      el('tr', {}, ...['Evaluation', 'Step', 'Result'].map((title) => el('th', { scope: 'col' }, title))),
    ),
    el(
      'tbody',
      {},
      ...(spec?.evaluations ?? []).map(({ name }) => {
        const last = found.find((each) => each.name === name);
        return el(
          'tr',
          {},
          el('td', {}, name),
          el('td', { class: 'number' }, last ? whole(last.step) : '–'),
          el('td', { class: 'number' }, last ? evaluationText(last) : '–'),
        );
      }),
    ),
  );
}

/** Each data set of a job with its weight in the mixture and its result in the last evaluation. */
export function datasetTable({ spec, progress }: Json<Job>): HTMLElement {
  const evaluated = progress?.datasets ?? [];
  if (evaluated.length === 0) return el('p', { class: 'muted' }, 'No evaluation yet.');
  const weights = new Map((spec?.mixture ?? []).map((part) => [part.dataset, part.weight]));
  const head = ['Data set', 'Weight', 'Passes', 'Held-out loss', 'Bits/byte'];
  return el(
    'table',
    {},
    el('thead', {}, el('tr', {}, ...head.map((title) => el('th', { scope: 'col' }, title)))),
    el(
      'tbody',
      {},
      ...evaluated.map(({ dataset, epochs, loss, bitsPerByte, tokenCount }) => {
        const isEvaluated = Number(tokenCount ?? 0) > 0;
        const cells = [
          figure(weights.get(dataset ?? '') ?? 1),
          figure(epochs ?? 0),
          isEvaluated ? figure(loss) : '–',
          isEvaluated ? figure(bitsPerByte) : '–',
        ];
        return el(
          'tr',
          {},
          el('td', {}, idOf(dataset ?? '')),
          ...cells.map((cell) => el('td', { class: 'number' }, cell)),
        );
      }),
    ),
  );
}

/** Restarts with the measurements of each merge. */
export function restartTable(restarts: readonly Json<Restart>[]): HTMLElement {
  if (restarts.length === 0) return el('p', { class: 'muted' }, 'No restarts yet.');
  const heads = [
    '#',
    'Before step',
    'Merged norm',
    'Logit change',
    'Held to',
    'Effective rank',
    'Loss before',
    'after',
    'Moments zeroed',
    'Rate before',
    'after',
    'Took',
  ];
  const rows = restarts.map(({ event }) => {
    const cells = [
      whole(event?.restart),
      whole(event?.step),
      figure(event?.deltaNorm),
      figure(event?.logitChangeMax),
      figure(event?.logitChangeTolerance),
      figure(event?.effectiveRank),
      figure(event?.lossBefore),
      figure(event?.lossAfter),
      `${figure(Number(event?.momentsZeroedRatio) * 100, 3)} %`,
      figure(event?.learningRateBefore),
      figure(event?.learningRateAfter),
      duration(event?.seconds),
    ];
    return el('tr', {}, ...cells.map((cell) => el('td', { class: 'right number' }, cell)));
  });
  return scrolling(
    'Restarts',
    el(
      'table',
      { class: 'rows' },
      el('thead', {}, el('tr', {}, ...heads.map((head) => el('th', { scope: 'col', class: 'right' }, head)))),
      el('tbody', {}, ...rows.reverse()),
    ),
  );
}
