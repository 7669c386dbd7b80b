import { Schedule, spanOf, type ExportFormat } from '@relora/engine/plan';
import type { Leases } from '../store/leases.js';
import type { Naming } from '../store/stage.js';
import { checkpointName } from '../store/folders.js';
import { storageCures, type PausingFault } from '../store/storageFault.js';
import type { JobRow } from '../store/schema.js';
import { hasTrainer, type Execution, type Job, type JobFailure, type JobProgress } from './job.js';
import type { JobChange, JobPatch, NewEvent } from './jobChange.js';
import type { ServerFailure, ServerWarning } from './jobFailures.js';
import type { JobJournal } from './jobJournal.js';
import { pinOf } from './jobDevices.js';
import { toJob } from './jobRow.js';
import { updateApplied } from './jobUpdates.js';
import { addSteps, endAttempt, type StepUse } from '../usage/attemptUse.js';
import { stopText } from './stopText.js';

/** Which execution of which job writes. Writes of any attempt but the current one are refused as `stale`. */
export interface AttemptKey {
  jobId: string;
  attempt: number;
  /** Number of the last of the trainer's messages in a write. A message that is repeated, because its answer was lost, changes nothing. */
  message?: number;
}

export interface RetryRule {
  attemptsWithoutProgressMax: number;
  retryDelayMs: number;
}

const unnamed: Naming = async () => {};

/** More than RELORA_SLOTS can be. */
const schedulesMax = 128;

/**
 * What trainers write, through the supervisor. Every write names its attempt and is refused if that is not the current one: a trainer that
 * was given up cannot disturb its successor. Once a write resolves with a job, it is on the disk.
 */
export class JobAttempts {
  /** Schedules of running jobs: a specification never changes, and parsing it takes longer than storing an event. */
  private readonly schedules = new Map<string, Schedule>();

  constructor(
    private readonly journal: JobJournal,
    private readonly dataFolder: string,
  ) {}

  /** A write of an attempt. `work` returns the row as it leaves it; it is only called if the attempt is the current one. */
  async write(
    key: AttemptKey,
    work: (row: JobRow, change: JobChange) => Promise<JobRow>,
  ): Promise<Job | 'stale'> {
    return await this.journal.change(async (change) => {
      const row = await change.find(key.jobId);
      if (row?.attempt !== key.attempt) return 'stale';
      const { message = 0 } = key;
      if (message > 0 && message <= row.message_number) return toJob(row);
      if (!hasTrainer(row.state)) return 'stale';
      return toJob(await work({ ...row, message_number: Math.max(message, row.message_number) }, change));
    });
  }

  /** starting → running. `step` is where the run begins: 0, or the step of its checkpoint. */
  async started(key: AttemptKey, execution: Execution, step: number): Promise<Job | 'stale'> {
    return await this.write(key, async (row, change) => {
      const progress = readProgress(row);
      progress.step = step;
      const job = toJob(row);
      const { spec } = job;
      progress.phase = phaseAt(this.scheduleOf(job), step, progress.stepCount);
      const reason = step === 0 ? 'Training' : `Training resumes from step ${step}`;
      return await change.moveTo(row, 'running', reason, {
        stop_request: row.stop_request, // asked while starting, not yet handled
        execution: JSON.stringify(execution),
        pin: spec.acceptedDevices.length === 0 ? pinOf(execution) : null,
        progress: JSON.stringify(progress),
      });
    });
  }

  /**
   * Appends events in one transaction with the progress and the checkpoints that they report; `name` gives the checkpoints' folders their
   * final names.
   */
  async append(key: AttemptKey, events: NewEvent[], name: Naming = unnamed): Promise<Job | 'stale'> {
    const schedule = this.schedules.get(key.jobId);
    return await this.write(key, async (row, change) => {
      await name(change.trx);
      const progress = readProgress(row);
      const patch: JobPatch = {};
      const stored: NewEvent[] = [];
      const steps: StepUse[] = [];
      for (const event of events) {
        if (event.body.kind === 'step') {
          const { seconds, tokenCount } = spanOf(event.body);
          steps.push({ timeMs: event.timeMs, seconds, tokens: tokenCount });
        }
        follow(progress, event, schedule ?? this.scheduleOf(toJob(row)));
        if (event.body.kind === 'update')
          await updateApplied(change.trx, row.id, event.body.number, event.body.step);
        if (event.body.kind !== 'checkpoint') {
          stored.push(event);
          continue;
        }
        const folder = this.checkpointFolder(row.id, event.body.path);
        stored.push({ ...event, body: { ...event.body, path: folder } });
        await change.trx
          .insertInto('checkpoints')
          .values({
            job_id: row.id,
            attempt: row.attempt,
            step: event.body.step,
            folder,
            size_bytes: event.body.sizeBytes,
            manifest_sha256: event.body.manifestSha256,
            corrupt: 0,
            create_time_ms: change.nowMs,
          })
          .execute();
        patch.attempts_without_progress = 0;
      }
      await addSteps(change.trx, row, steps, change.nowMs);
      return await change.append(row, row.attempt, stored, { ...patch, progress: JSON.stringify(progress) });
    });
  }

  /** Records that a checkpoint does not have the content that was saved: it is not used again. */
  async checkpointCorrupt(key: AttemptKey, path: string, problem: string): Promise<Job | 'stale'> {
    return await this.write(key, async (row, change) => {
      const folder = this.checkpointFolder(row.id, path);
      await change.trx
        .updateTable('checkpoints')
        .set({ corrupt: 1 })
        .where('job_id', '=', row.id)
        .where('folder', '=', folder)
        .execute();
      return await change.append(row, row.attempt, [
        warning(
          change,
          'CHECKPOINT_CORRUPT' satisfies ServerWarning,
          `Checkpoint ${folder} cannot be used (${problem}); the one before it is tried`,
        ),
      ]);
    });
  }

  async succeeded(key: AttemptKey): Promise<Job | 'stale'> {
    return await this.write(key, async (row, change) => {
      const failed = await change.trx
        .selectFrom('artifacts')
        .select('id')
        .where('job_id', '=', row.id)
        .where('state', '=', 'failed')
        .where('id', 'not like', 'export-%') // made on request
        .execute();
      const exported =
        failed.length === 0
          ? 'the weights exported'
          : `the export of ${failed.map(({ id }) => id).join(', ')} failed`;
      const { stop } = readProgress(row);
      const ended = stop === undefined ? 'All steps were taken' : stopText(stop);
      return await change.moveTo(row, 'succeeded', `${ended} and ${exported}`);
    });
  }

  async failed(key: AttemptKey, failure: JobFailure): Promise<Job | 'stale'> {
    return await this.write(
      key,
      async (row, change) => await change.moveTo(row, 'failed', failure.message, {}, failure),
    );
  }

  /** The trainer stopped as asked: the stop request decides about the state; without one the job is queued again. */
  async stopped(key: AttemptKey, reasonWithoutWish: string): Promise<Job | 'stale'> {
    return await this.write(
      key,
      async (row, change) =>
        (await honorWish(row, change)) ?? (await change.moveTo(row, 'queued', reasonWithoutWish)),
    );
  }

  /** The disk is full or cannot be written: nothing is lost, but the job has to wait until somebody fixes that. */
  async pausedForStorage(key: AttemptKey, reason: PausingFault, message: string): Promise<Job | 'stale'> {
    return await this.write(key, async (row, change) => {
      const warned = await change.append(row, row.attempt, [warning(change, reason, message)]);
      const why = `${message}; ${storageCures[reason]}, then resume the job`;
      return (await honorWish(warned, change)) ?? (await change.moveTo(warned, 'paused', why));
    });
  }

  /** The device is not available in the machine's present state: nothing is lost, but another attempt would fail the same way. */
  async pausedForDevice(key: AttemptKey, reason: string, message: string): Promise<Job | 'stale'> {
    return await this.write(
      key,
      async (row, change) =>
        (await honorWish(row, change)) ??
        (await change.moveTo(row, 'paused', `${message} (${reason}); then resume the job`)),
    );
  }

  /**
   * The trainer, or the server, ended without an answer. The job is queued again, with a longer pause after each crash, and fails after too
   * many crashes in a row without a new checkpoint. Crashes during an export count per format, and too many fail only that export: the
   * training is done. An open stop request is carried out at once.
   */
  async crashed(
    key: AttemptKey,
    what: string,
    rule: RetryRule,
    {
      reason = 'TRAINER_CRASHED' satisfies ServerFailure,
      exporting,
      lastLines,
    }: { reason?: string; exporting?: CrashedExport; lastLines?: readonly string[] } = {},
  ): Promise<Job | 'stale'> {
    return await this.write(key, async (row, change) =>
      exporting === undefined
        ? await afterCrash(row, change, { what, rule, reason, lastLines })
        : await afterExportCrash(row, change, { what, rule, exporting }),
    );
  }

  /** Like `crashed`, for a job of a server that was silent for too long; refused if that server has been heard from since. */
  async takenOver(key: AttemptKey, what: string, rule: RetryRule, leases: Leases): Promise<Job | 'stale'> {
    return await this.journal.change(async (change) => {
      const row = await change.findFree(key.jobId, leases);
      if (row?.attempt !== key.attempt || !hasTrainer(row.state)) return 'stale';
      // Nobody knows how long it lived after its last event, and time in which no server ran is not charged.
      await endAttempt(change.trx, row, row.update_time_ms);
      return toJob(await afterCrash(row, change, { what, rule, reason: 'TRAINER_CRASHED' }));
    });
  }

  /** No trainer could be started, which says nothing about the job: it is queued again, and the attempt does not count. */
  async notStarted(key: AttemptKey, what: string, delayMs: number): Promise<Job | 'stale'> {
    return await this.write(
      key,
      async (row, change) =>
        (await honorWish(row, change)) ??
        (await change.moveTo(row, 'queued', `${what}; it is tried again`, {
          not_before_ms: change.nowMs + delayMs,
        })),
    );
  }

  private scheduleOf({ id, spec }: Job): Schedule {
    let schedule = this.schedules.get(id);
    if (schedule === undefined) {
      schedule = new Schedule(spec);
      if (this.schedules.size >= schedulesMax) this.schedules.delete(this.schedules.keys().next().value!);
      this.schedules.set(id, schedule);
    }
    return schedule;
  }

  private checkpointFolder(jobId: string, path: string): string {
    const name = checkpointName(this.dataFolder, jobId, path);
    if (name === undefined) throw new Error(`${path} is not a checkpoint of job ${jobId}`);
    return name;
  }
}

/** An export during which its trainer crashed. */
export interface CrashedExport {
  format: ExportFormat;
  /** Stores that the export failed, so that the other work continues. */
  giveUp(row: JobRow, change: JobChange, message: string): Promise<JobRow>;
}

interface Crash {
  what: string;
  rule: RetryRule;
}

/** The state of a job whose trainer is gone: that of an open stop request, failed, or queued again. */
async function afterCrash(
  row: JobRow,
  change: JobChange,
  {
    what,
    rule,
    reason,
    lastLines = [],
  }: Crash & { reason: string; lastLines?: readonly string[] | undefined },
): Promise<JobRow> {
  const wished = await honorWish(row, change);
  if (wished !== undefined) return wished;
  const crashes = row.attempts_without_progress + 1;
  if (crashes >= rule.attemptsWithoutProgressMax) {
    const message = `${what}; ${attemptsText(crashes)} made no new checkpoint`;
    return await change.moveTo(
      row,
      'failed',
      message,
      { attempts_without_progress: crashes },
      { reason, message, ...(lastLines.length > 0 && { lastLines: [...lastLines] }) },
    );
  }
  const warned = await change.append(row, row.attempt, [
    warning(change, 'TRAINER_RESTARTED', `${what}; the job resumes from its last checkpoint`),
  ]);
  return await change.moveTo(warned, 'queued', `${what}; waits to resume from its last checkpoint`, {
    attempts_without_progress: crashes,
    not_before_ms: change.nowMs + pauseMs(rule, crashes),
  });
}

/** The same after the last step: it does not count as a crash of the training, of which nothing has to be repeated. */
async function afterExportCrash(
  row: JobRow,
  change: JobChange,
  { what, rule, exporting: { format, giveUp } }: Crash & { exporting: CrashedExport },
): Promise<JobRow> {
  const wished = await honorWish(row, change);
  if (wished !== undefined) return wished;
  const counts = JSON.parse(row.export_crashes) as Partial<Record<ExportFormat, number>>;
  const crashes = (counts[format] ?? 0) + 1;
  if (crashes >= rule.attemptsWithoutProgressMax) {
    const without = await giveUp(row, change, `${what}; ${attemptsText(crashes)} ended so`);
    return await change.moveTo(without, 'queued', `${what}; waits to finish without this export`);
  }
  const warned = await change.append(row, row.attempt, [
    warning(change, 'TRAINER_RESTARTED', `${what} in an export, which is begun again`),
  ]);
  return await change.moveTo(warned, 'queued', `${what}; waits to export again`, {
    export_crashes: JSON.stringify({ ...counts, [format]: crashes }),
    not_before_ms: change.nowMs + pauseMs(rule, crashes),
  });
}

function attemptsText(crashes: number): string {
  return `${crashes} ${crashes === 1 ? 'attempt' : 'attempts in a row'}`;
}

/** Twice as long after each crash, up to a limit. */
function pauseMs({ retryDelayMs }: RetryRule, crashes: number): number {
  return retryDelayMs * Math.min(60, 2 ** (crashes - 1));
}

async function honorWish(row: JobRow, change: JobChange): Promise<JobRow | undefined> {
  if (row.stop_request === 'cancel') return await change.moveTo(row, 'cancelled', 'Cancelled on request');
  if (row.stop_request === 'pause') return await change.moveTo(row, 'paused', 'Paused on request');
  return undefined;
}

function warning(change: JobChange, reason: ServerWarning, message: string): NewEvent {
  return { timeMs: change.nowMs, body: { kind: 'warning', reason, message } };
}

function readProgress(row: JobRow): JobProgress {
  return JSON.parse(row.progress) as JobProgress;
}

/** Phases do not depend on the number of steps, which an update may have changed. */
function phaseAt(schedule: Schedule, step: number, stepCount: number): JobProgress['phase'] {
  return schedule.phaseAt(Math.min(step, stepCount - 1));
}

/** Keeps the summary of a run up to date with its events. */
function follow(progress: JobProgress, { body }: NewEvent, schedule: Schedule): void {
  switch (body.kind) {
    case 'step': {
      progress.step = body.step + 1;
      progress.phase = phaseAt(schedule, progress.step, progress.stepCount);
      progress.trainedTokens = body.trainedTokens;
      if (body.omitted) break; // it took no time and no tokens
      // JSON has no NaN, and the loss of a skipped step says nothing about the run.
      if (!body.skipped) progress.loss = body.loss;
      const { tokenCount, seconds } = spanOf(body);
      const rate = tokenCount / seconds;
      // Smoothed over about ten events, so that one slow step hardly moves the estimated end.
      progress.tokensPerSecond =
        progress.tokensPerSecond === null ? rate : 0.9 * progress.tokensPerSecond + 0.1 * rate;
      progress.remainingSeconds =
        ((progress.stepCount - progress.step) * body.tokenCount) / progress.tokensPerSecond;
      break;
    }
    case 'update':
      progress.stepCount = body.stepCount;
      break;
    case 'evaluation':
      progress.evaluationLoss = body.loss;
      if (body.datasets !== undefined) progress.datasets = body.datasets;
      break;
    case 'namedEvaluation': {
      const { kind: _, ...evaluation } = body;
      progress.evaluations = { ...progress.evaluations, [body.name]: evaluation };
      break;
    }
    case 'restart':
      progress.restartCount = body.restart;
      break;
    case 'checkpoint':
      progress.checkpointStep = body.step;
      if (body.best !== undefined) progress.best = body.best;
      break;
    case 'stop': {
      const { step, reason, value, limit } = body;
      progress.stop = { step, reason, value, limit };
      progress.stepCount = step;
      progress.remainingSeconds = 0;
      break;
    }
    default:
      break;
  }
}
