import { setImmediate as nextTurn } from 'node:timers/promises';
import { joinSteps, spanOf } from '@relora/engine/plan';
import { sql, type Transaction } from 'kysely';
import type { Logger } from 'pino';
import type { Database } from '../store/database.js';
import type { Schema, StepSpanRow } from '../store/schema.js';
import { isStoreBroken } from '../store/storeError.js';
import { isTerminal } from './job.js';
import type { JobJournal } from './jobJournal.js';
import { toEvent } from './jobRow.js';
import { spanStepCountMin, toSpanRow, toStepEntry, type StepEntry } from './stepSpans.js';

export interface FoldingRule {
  /** Step events are kept unchanged for this long … */
  windowMs: number;
  /** … and the newest events of a job forever. */
  eventsKept: number;
}

/** Spans per doubling of the distance from the head: their length is at most the distance divided by this. */
const spansPerOctave = 512;
/** Number of events after which they are summed into spans; a curve reads the others one by one. */
const dueEvents = 1024;
/** Rows per transaction, which blocks everybody else for some milliseconds. */
const rowsPerTransaction = 1024;
/** Longest time of a timer, about 24 days; for a longer window it is set again. */
const timerMsMax = 2 ** 31 - 1;
/** Steps of a job between two attempts to join spans. */
const joinEverySteps = 2048;

/**
 * Keeps the history of a job small, however long the job is. Step events are soon summed into spans. Once they are older than the window
 * they are removed, and their span stands for them. Spans grow with their distance from the head, so that 100 times as many steps take only
 * twice as many spans. Events of other kinds stay forever and end a span, so that the order of all events is kept. Each transaction leaves
 * the journal valid. Work that a crash interrupts is found again, as it follows from the state of the store.
 */
export class HistoryFolding {
  /** Step events since a job was last processed. */
  private readonly pending = new Map<string, number>();
  private readonly due = new Set<string>();
  /** Step at which the spans of a job were last joined. */
  private readonly joinedAt = new Map<string, number>();
  private readonly timers = new Map<string, NodeJS.Timeout>();
  private readonly ends: (() => void)[] = [];
  private working: Promise<void> | undefined;
  private isStopping = false;

  constructor(
    private readonly db: Database,
    private readonly journal: JobJournal,
    private readonly rule: FoldingRule,
    private readonly log: Logger,
    private readonly onStoreFailure: (error: unknown) => void,
  ) {}

  /** Follows what jobs write, after checking all jobs once: an older version or a crash may have left much to do. */
  start(): void {
    this.ends.push(
      this.journal.onAppended((job, events) => {
        const steps = events.filter(({ body }) => body.kind === 'step').length;
        const pending = (this.pending.get(job.id) ?? 0) + steps;
        this.pending.set(job.id, pending);
        if (pending >= dueEvents) this.take(job.id);
        if (!isTerminal(job.state)) return;
        this.pending.delete(job.id);
        this.joinedAt.delete(job.id);
      }),
    );
    this.working = this.work(async () => {
      for (const id of await this.longJobs()) this.due.add(id);
    });
  }

  async stop(): Promise<void> {
    this.isStopping = true;
    for (const end of this.ends.splice(0)) end();
    for (const timer of this.timers.values()) clearTimeout(timer);
    await this.working;
  }

  /** Does everything for a job that can be done now. */
  async fold(jobId: string): Promise<void> {
    while (!this.isStopping && (await this.span(jobId))) await nextTurn();
    let wait: number | boolean = true;
    while (!this.isStopping && (wait = await this.removeOld(jobId)) === true) await nextTurn();
    await this.join(jobId);
    clearTimeout(this.timers.get(jobId));
    this.timers.delete(jobId);
    if (typeof wait !== 'number' || this.isStopping) return;
    const timer = setTimeout(() => this.take(jobId), Math.min(Math.max(1000, wait), timerMsMax));
    timer.unref();
    this.timers.set(jobId, timer);
  }

  private take(jobId: string): void {
    this.pending.delete(jobId);
    this.due.add(jobId);
    if (!this.isStopping) this.working ??= this.work();
  }

  private async work(first: () => Promise<void> = async () => {}): Promise<void> {
    try {
      await first();
      for (const jobId of this.due) {
        this.due.delete(jobId);
        if (this.isStopping) return;
        await this.fold(jobId);
      }
    } catch (error) {
      // Nothing is lost: the next events of the job, or the next start, try again.
      this.log.error({ err: error }, 'The history of a job could not be folded');
      if (isStoreBroken(error)) this.onStoreFailure(error);
    } finally {
      this.working = undefined;
    }
  }

  /** Jobs with work to do: there may be thousands of long jobs, most of them completely processed. */
  private async longJobs(): Promise<string[]> {
    const rows = await this.db
      .selectFrom('jobs')
      .select((eb) => [
        'id',
        'last_sequence',
        eb
          .selectFrom('step_spans')
          .select(({ fn }) => fn.max('last_sequence').as('spanned'))
          .whereRef('job_id', '=', 'jobs.id')
          .as('spanned'),
        // The oldest events are removed first: if those of the newest removable span are gone, all are.
        eb
          .selectFrom('step_spans')
          .select('folded')
          .whereRef('job_id', '=', 'jobs.id')
          .where(
            'step_spans.last_sequence',
            '<=',
            ({ ref }) => sql<number>`${ref('jobs.last_sequence')} - ${sql.lit(this.rule.eventsKept)}`,
          )
          .orderBy('step_spans.last_sequence', 'desc')
          .limit(1)
          .as('folded'),
      ])
      .where('last_sequence', '>', Math.min(dueEvents, this.rule.eventsKept))
      .execute();
    return rows
      .filter(
        ({ last_sequence, spanned, folded }) =>
          last_sequence - (spanned ?? 0) >= dueEvents || Number(folded ?? 1) === 0,
      )
      .map(({ id }) => id);
  }

  /** Sums the next step events that are not in a span yet; true if there are more. */
  private async span(jobId: string): Promise<boolean> {
    return await this.change(jobId, async (trx) => {
      const { spanned } = await trx
        .selectFrom('step_spans')
        .select(({ fn }) => fn.max('last_sequence').as('spanned'))
        .where('job_id', '=', jobId)
        .executeTakeFirstOrThrow();
      const rows = await trx
        .selectFrom('events')
        .selectAll()
        .where('job_id', '=', jobId)
        .where('sequence', '>', spanned ?? 0)
        .orderBy('sequence')
        .limit(rowsPerTransaction)
        .execute();
      const spans: StepEntry[] = [];
      let open: StepEntry | null = null;
      const close = (): void => {
        if (open !== null) spans.push(open);
        open = null;
      };
      for (const row of rows) {
        const event = toEvent(row);
        if (event.body.kind !== 'step') {
          close();
          continue;
        }
        const entry = event as StepEntry;
        if (open !== null && !fit(placeOf(open), placeOf(entry), spanStepCountMin)) close();
        open = open === null ? entry : joined(open, entry);
        if ((entry.body.step + 1) % spanStepCountMin === 0) close();
      }
      // The next event may continue the last, open span.
      if (spans.length > 0) await insertSpans(trx, jobId, spans, false);
      return rows.length === rowsPerTransaction && spans.length > 0;
    });
  }

  /**
   * Removes the events of the oldest spans. Returns true if there may be more, else the milliseconds until the next are old enough, or
   * false if only new events can change something.
   */
  private async removeOld(jobId: string): Promise<number | boolean> {
    return await this.change(jobId, async (trx, lastSequence) => {
      const spans = await trx
        .selectFrom('step_spans')
        .select(['first_sequence', 'last_sequence', 'time_ms'])
        .where('job_id', '=', jobId)
        .where('folded', '=', 0)
        .where('last_sequence', '<=', lastSequence - this.rule.eventsKept)
        .orderBy('last_sequence')
        .limit(rowsPerTransaction / spanStepCountMin)
        .execute();
      const oldMs = Date.now() - this.rule.windowMs;
      const young = spans.findIndex(({ time_ms }) => time_ms > oldMs);
      const old = young < 0 ? spans : spans.slice(0, young);
      for (const { first_sequence, last_sequence } of old)
        await trx
          .deleteFrom('events')
          .where('job_id', '=', jobId)
          .where('sequence', '>=', first_sequence)
          .where('sequence', '<=', last_sequence)
          .execute();
      if (old.length > 0)
        await trx
          .updateTable('step_spans')
          .set({ folded: 1 })
          .where('job_id', '=', jobId)
          .where(
            'last_sequence',
            'in',
            old.map(({ last_sequence }) => last_sequence),
          )
          .execute();
      if (young >= 0) return spans[young]!.time_ms - oldMs;
      return old.length > 0;
    });
  }

  /** Joins neighboring spans that are far enough from the head. */
  private async join(jobId: string): Promise<void> {
    const places = await this.db
      .selectFrom('step_spans')
      .select(placeColumns)
      .where('job_id', '=', jobId)
      .orderBy('last_sequence')
      .execute();
    const head = places.at(-1)?.last_step ?? 0;
    const before = this.joinedAt.get(jobId);
    if (this.isStopping || (before !== undefined && Math.abs(head - before) < joinEverySteps)) return;
    const groups = groupsToJoin(places, head);
    for (let index = 0; index < groups.length && !this.isStopping;) {
      let rows = 0;
      const taken: Place[][] = [];
      while (index < groups.length && (rows === 0 || rows + groups[index]!.length <= rowsPerTransaction)) {
        rows += groups[index]!.length;
        taken.push(groups[index++]!);
      }
      await this.change(jobId, async (trx) => {
        for (const group of taken) await joinGroup(trx, jobId, group);
      });
      await nextTurn();
    }
    if (!this.isStopping) this.joinedAt.set(jobId, head);
  }

  /** A transaction with exclusive access to the job, as for appending events. */
  private async change<T>(
    jobId: string,
    work: (trx: Transaction<Schema>, lastSequence: number) => Promise<T>,
  ): Promise<T | false> {
    return await this.db.transaction().execute(async (trx) => {
      const job = await trx
        .selectFrom('jobs')
        .select('last_sequence')
        .where('id', '=', jobId)
        .forUpdate()
        .executeTakeFirst();
      return job === undefined ? false : await work(trx, job.last_sequence);
    });
  }
}

const placeColumns = [
  'first_sequence',
  'last_sequence',
  'first_step',
  'last_step',
  'attempt',
  'folded',
] as const;
type Place = Pick<StepSpanRow, (typeof placeColumns)[number]>;

function placeOf(entry: StepEntry): Place {
  return {
    first_sequence: entry.firstSequence,
    last_sequence: entry.sequence,
    first_step: spanOf(entry.body).firstStep,
    last_step: entry.body.step,
    attempt: entry.attempt,
    folded: 0,
  };
}

/**
 * Whether two spans may be joined to one of `stepCount` steps: nothing lies between them, and both lie in the same block of that length, so
 * that spans of different jobs end at the same steps.
 */
function fit(first: Place, next: Place, stepCount: number): boolean {
  return (
    next.first_sequence === first.last_sequence + 1 &&
    next.first_step === first.last_step + 1 &&
    next.attempt === first.attempt &&
    next.folded === first.folded &&
    Math.floor(first.first_step / stepCount) === Math.floor(next.last_step / stepCount)
  );
}

/** Groups of neighbors, each to be joined to one span. */
function groupsToJoin(places: readonly Place[], head: number): Place[][] {
  const groups: Place[][] = [];
  let group: Place[] = [];
  for (const place of places) {
    const distance = Math.max(1, head - place.last_step);
    const stepCount = Math.max(spanStepCountMin, 2 ** Math.floor(Math.log2(distance / spansPerOctave)));
    const [first, last] = [group[0], group.at(-1)];
    const isNext =
      last !== undefined &&
      fit(last, place, stepCount) &&
      Math.floor(first!.first_step / stepCount) === Math.floor(place.last_step / stepCount);
    if (isNext) group.push(place);
    else {
      if (group.length > 1) groups.push(group);
      group = [place];
    }
  }
  if (group.length > 1) groups.push(group);
  return groups;
}

async function joinGroup(trx: Transaction<Schema>, jobId: string, group: readonly Place[]): Promise<void> {
  const [first, last] = [group[0]!, group.at(-1)!];
  const rows = await trx
    .selectFrom('step_spans')
    .selectAll()
    .where('job_id', '=', jobId)
    .where('last_sequence', '>=', first.first_sequence)
    .where('last_sequence', '<=', last.last_sequence)
    .orderBy('last_sequence')
    .execute();
  // Another server, or a deletion, changed them meanwhile.
  if (rows.length !== group.length) return;
  await trx
    .deleteFrom('step_spans')
    .where('job_id', '=', jobId)
    .where('last_sequence', '>=', first.first_sequence)
    .where('last_sequence', '<=', last.last_sequence)
    .execute();
  await insertSpans(trx, jobId, [rows.map(toStepEntry).reduce(joined)], first.folded === 1);
}

function joined(first: StepEntry, next: StepEntry): StepEntry {
  return { ...next, firstSequence: first.firstSequence, body: joinSteps(first.body, next.body) };
}

async function insertSpans(
  trx: Transaction<Schema>,
  jobId: string,
  spans: readonly StepEntry[],
  isFolded: boolean,
): Promise<void> {
  for (let start = 0; start < spans.length; start += 64)
    await trx
      .insertInto('step_spans')
      .values(spans.slice(start, start + 64).map((span) => toSpanRow(jobId, span, isFolded)))
      .execute();
}
