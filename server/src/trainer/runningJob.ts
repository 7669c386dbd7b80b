import { basename } from 'node:path';
import type { RunUpdate } from '@relora/engine/plan';
import type { Logger } from 'pino';
import type { PlannedArtifact, SealedArtifact } from '../artifacts/artifact.js';
import { failExport, sealArtifact, storeFailedExport } from '../artifacts/sealArtifact.js';
import type { PausingFault } from '../store/storageFault.js';
import { isOfFiles, isPassing, isStoreBroken } from '../store/storeError.js';
import { checkpointName, folders } from '../store/folders.js';
import { BlobDamaged, giveThen, type Maker, type Stage } from '../store/stage.js';
import { checkpointDigests, type CheckpointStore } from '../jobs/checkpointStore.js';
import type { Job, JobFailure } from '../jobs/job.js';
import type { AttemptKey, JobAttempts, RetryRule } from '../jobs/jobAttempts.js';
import type { NewEvent } from '../jobs/jobChange.js';
import { keepCountAfter } from '../jobs/jobUpdates.js';
import type { ServerFailure } from '../jobs/jobFailures.js';
import { parseTrainerMessage, type TrainerMessage } from './childMessages.js';
import { JobLog } from './jobLog.js';
import type { TrainOrder } from './messages.js';
import type { LedGang } from './ledGang.js';
import { lostReason, RankProcesses, type RankProcessesParts } from './rankProcesses.js';
import { TrainerProcess, type ProcessExit, type ProcessOptions } from './trainerProcess.js';

export interface RunningJobParts {
  attempts: JobAttempts;
  checkpoints: CheckpointStore;
  stage: Stage;
  /** Folders of the stage that the trainer reads: data sets, and the weights that it begins at. */
  inputs: readonly string[];
  dataFolder: string;
  process: Omit<ProcessOptions, 'onMessage' | 'onLine' | 'log'>;
  /** The other ranks that train with it on this machine; empty for none. */
  ranks: RankProcessesParts['ranks'];
  /** The ranks on other machines, through mpirun; null if there are none. */
  gang: LedGang | null;
  /** Limit of the log of what the trainer of an attempt prints. */
  logBytesMax: number;
  retry: RetryRule;
  log: Logger;
  /** The store failed, and not because of a full disk: nothing can be promised any more. */
  onStoreFailure(error: unknown): void;
}

/** How a trainer process ended. */
export type TrainerOutcome = 'succeeded' | 'stopped' | 'failed' | 'crashed';

/** How much of a trainer's output is shown with the failure of its job. */
const lastLinesMax = 40;
const lastLineLengthMax = 500;
/** Events wait this long to be written together, so that a fast run costs at most twenty syncs of the disk per second. */
const batchDelayMs = 50;
const batchEventsMax = 256;
/** Pause before retrying on a full disk. Meanwhile the trainer waits for acknowledgements. */
const fullDiskRetryMs = 2000;
/** If the machine could not start its trainer, a job waits this many times the pause after a crash. */
const notStartedDelays = 10;
/** Faults that may be gone at the next attempt: another program frees the memory of a card, or the card or disk is back. */
const passingReasons: ReadonlySet<string> = new Set([
  'DEVICE_OUT_OF_MEMORY',
  'DEVICE_LOST',
  'STORAGE_BROKEN',
  lostReason,
]);
/** Failures of a trainer that its inputs cause, or the disk under them. */
const inputReasons: ReadonlySet<string> = new Set([
  'DATASET_CORRUPT',
  'BASE_WEIGHTS_CHANGED',
  'STORAGE_BROKEN',
]);
/** Faults of the machine, for which the job is paused until somebody fixes them. */
const machineReasons: ReadonlySet<string> = new Set([
  'DEVICE_NOT_FOUND',
  'DEVICE_LIBRARY_MISSING',
  'DEVICE_DRIVER_TOO_OLD',
  'DEVICE_TOO_OLD',
]);
/** Failures of the engine for which the job is paused, without losing anything, until somebody fixes the disk. */
const storageReasons: Readonly<Record<string, PausingFault>> = {
  CHECKPOINT_NO_SPACE: 'STORAGE_FULL',
  STORAGE_FULL: 'STORAGE_FULL',
  STORAGE_UNWRITABLE: 'STORAGE_UNWRITABLE',
};

/**
 * One execution of a job, as the server sees it: it starts a trainer process, writes its messages to the journal in order, acknowledges
 * each once it is on the disk, and turns the end of the process into the job's next state.
 */
export class RunningJob {
  readonly key: AttemptKey;
  /** Resolves when the process is gone and the job's next state is stored; never rejects. */
  readonly done: Promise<TrainerOutcome>;
  private readonly process: TrainerProcess;
  private readonly ranks: RankProcesses;
  /** Which of the other ranks is gone, and how it ended. */
  private lost: string | undefined;
  private readonly log: Logger;
  private readonly waiting: TrainerMessage[] = [];
  private batchTimer: NodeJS.Timeout | undefined;
  private writing: Promise<void> | undefined;
  private lastNumber = 0;
  private acknowledged = 0;
  private outcome: TrainerOutcome | undefined;
  /** The artifact that it is making. */
  private exporting: PlannedArtifact | undefined;
  /** Why we kill the process. */
  private fault: { reason: ServerFailure; message: string } | undefined;
  private stopAsked: 'pause' | 'cancel' | 'shutdown' | undefined;
  private readonly output: JobLog;
  /** The last lines that it printed, for the failure of its job. */
  private lastLines: string[] = [];
  private saveTicket = 0;
  private lastUpdate: number;
  /** Number of checkpoints that are kept; an update may change it. */
  private keepCount: number;
  /** Callers that wait for a checkpoint, by ticket. */
  private readonly savers = new Map<number, (problem: string | null) => void>();
  /** Some messages could not be stored, so no later ones are. */
  private hasLost = false;
  /** The server no longer waits for this run, not even for disk space. */
  private isAbandoned = false;

  constructor(
    private readonly parts: RunningJobParts,
    private readonly job: Job,
    private readonly order: TrainOrder,
  ) {
    this.key = { jobId: job.id, attempt: job.attempt };
    this.lastUpdate = order.updates.at(-1)?.number ?? 0;
    this.keepCount = order.updates.reduce(keepCountAfter, job.spec.checkpoint.keepCount);
    this.output = new JobLog(folders.log(parts.dataFolder, job.id), job.attempt, parts.logBytesMax);
    this.log = parts.log.child({ jobId: job.id, attempt: job.attempt });
    const onLine = (isError: boolean, line: string): void => {
      this.lastLines = [...this.lastLines, line.slice(0, lastLineLengthMax)].slice(-lastLinesMax);
      this.output.write(isError, line);
    };
    this.process = new TrainerProcess({
      ...parts.process,
      log: this.log,
      onMessage: (message) => this.receive(message),
      onLine,
    });
    this.log.info({ trainerPid: this.process.pid }, 'A trainer is started');
    this.process.send({ type: 'train', order });
    const { gang } = parts;
    const onLost = (what: string): void => {
      this.lost ??= what;
      this.process.kill();
    };
    this.ranks = new RankProcesses({
      ranks: parts.ranks,
      log: this.log,
      onLine,
      onLost,
      ...(gang !== null && { byMpi: true, onGone: (rank, end) => gang.leave(rank, end) }),
    });
    gang?.listen(onLost, (line) => onLine(true, `[mpirun] ${line}`));
    this.done = this.process.exited.then(async (exit) => {
      gang?.leave(0, { isWell: exit.code === 0 && this.lost === undefined, what: exit.what });
      this.ranks.end();
      await this.ranks.gone; // the next attempt begins only after this one is completely gone
      await gang?.end();
      return await this.conclude(exit);
    });
  }

  get pid(): number | undefined {
    return this.process.pid;
  }

  get pids(): (number | undefined)[] {
    return [this.process.pid, ...this.ranks.pids];
  }

  /**
   * Has the trainer stop within a micro-batch. For a pause or a shutdown of the server it saves a checkpoint first, so its grace time
   * begins after the micro-batch. A trainer that does not stop within its grace time is killed, and the job resumes from its last
   * checkpoint. A cancel takes precedence, and waits for nothing.
   */
  stop(why: 'pause' | 'cancel' | 'shutdown'): void {
    if (this.stopAsked === why || this.stopAsked === 'cancel') return;
    this.stopAsked = why;
    this.process.send({ type: 'stop', keep: why !== 'cancel' });
    if (why === 'cancel') this.process.killAfterGrace();
    else this.process.killAfterGraceOnceHeard();
  }

  /**
   * Has the trainer save a checkpoint after the current step and continue. Resolves when the row of the checkpoint is stored, or when the
   * run is over, whose newest checkpoint exists then; with a problem if it cannot be saved.
   */
  async saveCheckpoint(): Promise<string | null> {
    const ticket = ++this.saveTicket;
    this.process.send({ type: 'save', ticket });
    const saved = new Promise<string | null>((resolve) => this.savers.set(ticket, resolve));
    return await Promise.race([saved, this.done.then(() => null)]);
  }

  /** Number of the last update that the trainer was sent. */
  get updateNumber(): number {
    return this.lastUpdate;
  }

  /** Sends the trainer the updates that it does not have; it applies them at the start of its next step. */
  update(updates: readonly RunUpdate[]): void {
    for (const update of updates) {
      if (update.number <= this.lastUpdate) continue;
      this.lastUpdate = update.number;
      this.keepCount = keepCountAfter(this.keepCount, update);
      this.process.send({ type: 'update', update });
    }
  }

  /** Ends it at once, because the server has no time left: what cannot be stored now is repaired at the next start. */
  abandon(): void {
    this.isAbandoned = true;
    this.process.kill();
  }

  private receive(raw: unknown): void {
    if (this.fault !== undefined || this.hasLost) return;
    const message = parseTrainerMessage(raw);
    if (message === undefined) return this.refuse('sent something that is not a message');
    if (message.number !== this.lastNumber + 1)
      return this.refuse(`sent message ${message.number} after ${this.lastNumber}`);
    this.lastNumber = message.number;
    if (this.lastNumber - this.acknowledged > this.order.unacknowledgedMax)
      return this.refuse('did not wait for acknowledgements');
    if (this.outcome !== undefined) return this.refuse('sent more after its end');
    if (
      message.type === 'event' &&
      message.body.kind === 'checkpoint' &&
      !this.isCheckpoint(message.body.path)
    ) {
      return this.refuse('names a checkpoint outside of its folder');
    }
    if (message.type === 'checkpointCorrupt' && !this.isCheckpoint(message.path))
      return this.refuse('names a checkpoint outside of its folder');
    if (message.type === 'finished' && message.outcome === 'stopped' && this.stopAsked === undefined)
      return this.refuse('stopped unasked');

    this.waiting.push(message);
    // Steps may wait a moment; everything that affects what clients can do is written at once.
    if (message.type !== 'event' || message.body.kind !== 'step') this.write();
    else this.batchTimer ??= setTimeout(() => this.write(), batchDelayMs);
  }

  private isCheckpoint(path: string): boolean {
    return checkpointName(this.parts.dataFolder, this.job.id, path) !== undefined;
  }

  /** The trainer's messages cannot be trusted any more: no more are written, and the job fails with `what`. */
  private refuse(what: string): void {
    this.fault = { reason: 'TRAINER_PROTOCOL', message: `The trainer ${what}` };
    this.log.error(this.fault.message);
    this.process.kill();
  }

  private write(): void {
    clearTimeout(this.batchTimer);
    this.batchTimer = undefined;
    // A single writer keeps the order; it also writes what arrives while it works.
    this.writing ??= this.writeWaiting()
      .catch((error: unknown) => {
        // These may concern files of the trainer that are copied to other servers: the next attempt makes them again.
        const isOfMachine = isPassing(error) || isOfFiles(error) || error instanceof BlobDamaged;
        // A message that the store or the table of states refuses is wrong, even if it is well-formed.
        if (!isStoreBroken(error) && !isOfMachine) {
          this.log.error({ err: error }, 'A message of the trainer was refused');
          return this.refuse('sent a message that does not fit its job');
        }
        // Later messages would leave a gap in the journal.
        this.hasLost = true;
        this.waiting.length = 0;
        this.process.kill();
        if (isOfMachine)
          return this.log.warn(
            { err: error },
            'The last messages cannot be stored: the job goes back to before them',
          );
        this.log.fatal({ err: error }, 'The journal cannot be written');
        this.parts.onStoreFailure(error);
      })
      .finally(() => (this.writing = undefined));
  }

  private async writeWaiting(): Promise<void> {
    while (this.waiting.length > 0 && this.fault === undefined) {
      const events = this.waiting.slice(0, batchEventsMax);
      const other = events.findIndex((message) => message.type !== 'event');
      const taken =
        other === 0 ? this.waiting.splice(0, 1) : this.waiting.splice(0, other < 0 ? events.length : other);
      const result = await this.untilSpace(async () => await this.store(taken));
      if (result === 'stale') {
        this.fault = { reason: 'TRAINER_PROTOCOL', message: 'The attempt is over' };
        this.log.warn('The job has another attempt; this trainer is ended');
        this.process.kill();
        return;
      }
      this.acknowledged = taken.at(-1)!.number;
      this.process.send({ type: 'ack', number: this.acknowledged });
      if (taken.some((message) => message.type === 'event' && message.body.kind === 'checkpoint'))
        this.prune();
    }
  }

  private async store(messages: TrainerMessage[]): Promise<Job | 'stale' | undefined> {
    const { attempts } = this.parts;
    const message = messages[0]!;
    const key = { ...this.key, message: messages.at(-1)!.number };
    switch (message.type) {
      case 'event':
        return await this.storeEvents(
          key,
          messages.flatMap((entry) =>
            entry.type === 'event' ? [{ timeMs: entry.timeMs, body: entry.body }] : [],
          ),
        );
      case 'started':
        return await attempts.started(key, message.execution, message.step);
      case 'checkpointCorrupt':
        return await attempts.checkpointCorrupt(key, message.path, message.problem);
      case 'saved':
        for (const [ticket, resolve] of this.savers) {
          if (ticket > message.ticket) continue;
          this.savers.delete(ticket);
          resolve(message.problem);
        }
        return undefined;
      case 'exporting':
        this.exporting = message.artifact;
        return undefined;
      case 'artifact':
        this.exporting = undefined;
        return await this.storeArtifact(key, message.artifact);
      case 'exportFailed':
        this.exporting = undefined;
        return await storeFailedExport(attempts, key, message.artifact, message.failure);
      case 'finished': {
        const result =
          message.outcome === 'succeeded'
            ? await attempts.succeeded(key)
            : await attempts.stopped(
                key,
                'The server stopped; resumes from its checkpoint when it runs again',
              );
        this.outcome = message.outcome;
        this.process.killAfterGrace();
        return result;
      }
      case 'failed': {
        const result = await this.storeFailure(key, message);
        this.outcome = 'failed';
        this.process.killAfterGrace();
        return result;
      }
    }
  }

  private async storeEvents(key: AttemptKey, events: NewEvent[]): Promise<Job | 'stale'> {
    const { attempts, stage } = this.parts;
    const given = [];
    for (const { body } of events) {
      if (body.kind !== 'checkpoint') continue;
      const folder = `jobs/${this.job.id}/checkpoints/${basename(body.path)}`;
      given.push({ folder, maker: this.maker, digests: await checkpointDigests(body.path) });
    }
    return await giveThen(stage, given, async (name) => await attempts.append(key, events, name));
  }

  private async storeArtifact(key: AttemptKey, artifact: SealedArtifact): Promise<Job | 'stale'> {
    const { attempts, stage } = this.parts;
    const folder = `jobs/${this.job.id}/artifacts/${artifact.id}`;
    const digests = new Map(artifact.files.map(({ fileName, sha256 }) => [fileName, sha256]));
    return await giveThen(
      stage,
      [{ folder, maker: this.maker, digests }],
      async (name) => await sealArtifact(attempts, key, artifact, name),
    );
  }

  private get maker(): Maker {
    return { kind: 'run', fence: this.key.attempt };
  }

  private async storeFailure(
    key: AttemptKey,
    reported: { reason: string; message: string },
  ): Promise<Job | 'stale'> {
    const { attempts, retry, stage, inputs } = this.parts;
    // If it only reports that another rank is gone, that rank's own failure says more.
    const { reason, message } = (reported.reason === lostReason && this.ranks.failure) || reported;
    // With a shared store this server has only a copy, and the next attempt fetches it again.
    if (inputReasons.has(reason) && inputs.map((folder) => stage.distrust(folder)).includes(true))
      return await attempts.crashed(key, message, retry, { reason });
    const storageReason = storageReasons[reason];
    if (storageReason !== undefined) return await attempts.pausedForStorage(key, storageReason, message);
    if (machineReasons.has(reason)) return await attempts.pausedForDevice(key, reason, message);
    if (passingReasons.has(reason)) return await attempts.crashed(key, message, retry, { reason });
    return await attempts.failed(key, this.failureOf({ reason, message }));
  }

  /** Tries again while the disk is full; the store rolls back what it could not finish. */
  private async untilSpace<T>(write: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await write();
      } catch (error) {
        if (!isPassing(error) || this.isAbandoned) throw error;
        this.log.error({ err: error }, 'The journal waits: the disk is full, or the database is away');
        await new Promise((resolve) => setTimeout(resolve, fullDiskRetryMs));
      }
    }
  }

  private failureOf({ reason, message }: { reason: string; message: string }): JobFailure {
    return { reason, message, ...(this.lastLines.length > 0 && { lastLines: this.lastLines }) };
  }

  private prune(): void {
    this.parts.checkpoints.prune(this.job.id, this.keepCount).catch((error: unknown) => {
      this.log.warn({ err: error }, 'Old checkpoints could not be removed');
    });
  }

  private async conclude(exit: ProcessExit): Promise<TrainerOutcome> {
    this.write();
    while (this.writing !== undefined) await this.writing;
    try {
      return await this.untilSpace(async () => await this.storeEnd(exit));
    } catch (error) {
      if (isPassing(error)) {
        this.log.warn(
          { err: error },
          'The end of a trainer cannot be stored: the next start of the server puts the job right',
        );
        return 'stopped';
      }
      this.log.fatal({ err: error }, 'The end of a trainer cannot be stored');
      if (isStoreBroken(error)) this.parts.onStoreFailure(error);
      return 'crashed';
    }
  }

  private async storeEnd(exit: ProcessExit): Promise<TrainerOutcome> {
    await this.output.flush();
    const { attempts, checkpoints, retry } = this.parts;
    await checkpoints.clearOrphans(this.job.id).catch((error: unknown) => {
      this.log.warn({ err: error }, 'Leftovers could not be removed');
    });
    if (this.outcome !== undefined) {
      this.log.info({ outcome: this.outcome }, 'The trainer ended');
      return this.outcome;
    }
    if (this.fault !== undefined) {
      await attempts.failed(this.key, this.failureOf(this.fault));
      return 'failed';
    }
    if (this.stopAsked === 'shutdown') {
      await attempts.stopped(
        this.key,
        'The server stopped before a new checkpoint; resumes from the last one',
      );
      return 'stopped';
    }
    // With MPI or NCCL the first rank does not learn why another has failed, and is ended.
    if (this.lost !== undefined && this.ranks.failure !== undefined) {
      await this.storeFailure(this.key, this.ranks.failure);
      return 'failed';
    }
    const { what = exit.what } = { what: this.lost };
    this.log.error({ code: exit.code, signal: exit.signal }, what);
    if (!exit.wasStarted) {
      await attempts.notStarted(this.key, exit.what, retry.retryDelayMs * notStartedDelays);
      return 'crashed';
    }
    const { exporting } = this;
    const reason = exit.wasOutOfMemory ? 'OUT_OF_MEMORY' : 'TRAINER_CRASHED';
    await attempts.crashed(this.key, what, retry, {
      reason,
      lastLines: this.lastLines,
      ...(exporting !== undefined && {
        exporting: {
          format: exporting.format,
          giveUp: async (row, change, message) =>
            await failExport(row, change, exporting, { reason, message }),
        },
      }),
    });
    return 'crashed';
  }
}
