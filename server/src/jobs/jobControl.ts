import type { RunChange } from '@relora/engine/plan';
import { releaseRequest, takeRequest } from '../store/requests.js';
import type { JobRow } from '../store/schema.js';
import type { JobStore } from './jobStore.js';
import { hasTrainer, isTerminal, type Job } from './job.js';
import type { JobChange, JobPatch } from './jobChange.js';
import { insertUpdates } from './jobUpdates.js';
import type { JobJournal } from './jobJournal.js';
import { nameOf } from '../store/tenantIds.js';

export interface ControlOptions {
  /** A repeated call with the same id returns the job without acting again. */
  requestId?: string | null;
  /** Act only if the job still has this version. */
  version?: number | null;
}

export interface UpdateWish {
  /** Change of the run; null for none. */
  change: RunChange | null;
  priority: number | null;
  labels: Record<string, string>;
  removedLabels: readonly string[];
  /** SHA-256 of everything that was asked for. */
  digest: string;
}

/**
 * `wrongState`: with the job, so that the answer can name its state. `changed`: the job has another version. `conflict`: the request id was
 * used for something else.
 */
export type ControlResult =
  | { outcome: 'done'; job: Job }
  | { outcome: 'wrongState'; job: Job }
  | { outcome: 'changed'; job: Job }
  | { outcome: 'notFound' }
  | { outcome: 'conflict' };

type Decision = JobRow | 'wrongState';

/**
 * Pauses, resumes and cancels jobs. Without a trainer, the new state of the job is stored at once. With a trainer, the request is stored
 * (`stopRequest`), survives a crash, and becomes a state once the trainer has stopped: see whenSettled.
 */
export class JobControl {
  constructor(
    private readonly store: JobStore,
    private readonly journal: JobJournal,
  ) {}

  /** queued, starting, running → paused. A paused job is left as it is. */
  async pause(jobId: string, options: ControlOptions = {}): Promise<ControlResult> {
    return await this.act('pause', jobId, options, async (row, change) => {
      if (row.state === 'paused' || row.stop_request === 'pause') return row;
      if (row.state === 'queued')
        return await change.moveTo(row, 'paused', 'Paused on request before it began');
      if (hasTrainer(row.state) && row.stop_request === null)
        return await change.update(row, { stop_request: 'pause' });
      return 'wrongState';
    });
  }

  /** paused → queued. */
  async resume(jobId: string, options: ControlOptions = {}): Promise<ControlResult> {
    return await this.act('resume', jobId, options, async (row, change) => {
      if (row.state !== 'paused') return 'wrongState';
      return await change.moveTo(row, 'queued', 'Resumed on request; waits for a free slot', {
        not_before_ms: 0,
        attempts_without_progress: 0,
        export_crashes: '{}',
      });
    });
  }

  /** Any state that is not terminal → cancelled. A cancelled job is left as it is. */
  async cancel(jobId: string, options: ControlOptions = {}): Promise<ControlResult> {
    return await this.act('cancel', jobId, options, async (row, change) => {
      if (row.state === 'cancelled' || row.stop_request === 'cancel') return row;
      if (isTerminal(row.state)) return 'wrongState';
      if (hasTrainer(row.state)) return await change.update(row, { stop_request: 'cancel' });
      return await change.moveTo(row, 'cancelled', 'Cancelled on request');
    });
  }

  /**
   * Changes a job that has not ended. Changes of its run are stored as updates next to its specification and passed to its trainer;
   * priority and labels are changed at once.
   */
  async update(jobId: string, wish: UpdateWish, options: ControlOptions = {}): Promise<ControlResult> {
    return await this.act(`update ${wish.digest}`, jobId, options, async (row, change) => {
      if (isTerminal(row.state) || row.stop_request === 'cancel') return 'wrongState';
      const patch: JobPatch = {};
      if (wish.change !== null) {
        patch.update_number = row.update_number + 1;
        const update = { number: patch.update_number, step: null, change: wish.change };
        await insertUpdates(change.trx, jobId, [update], change.nowMs);
      }
      if (wish.priority !== null) {
        patch.priority = wish.priority;
        // It does not affect the run, so the specification shows the new value.
        patch.spec = JSON.stringify({ ...(JSON.parse(row.spec) as object), priority: wish.priority });
      }
      const labels = { ...(JSON.parse(row.labels) as Record<string, string>), ...wish.labels };
      for (const key of wish.removedLabels) delete labels[key];
      patch.labels = JSON.stringify(labels);
      await change.setLabels(row, labels);
      return await change.update(row, patch);
    });
  }

  /** The job once no stop request is open, or its state when the signal aborts; undefined if it does not exist. */
  async whenSettled(jobId: string, signal: AbortSignal): Promise<Job | undefined> {
    for (;;) {
      const job = await this.store.find(jobId);
      if (job === undefined || job.stopRequest === null || signal.aborted) return job;
      await this.journal.changedSince(jobId, job.lastSequence, signal);
    }
  }

  private async act(
    method: string,
    jobId: string,
    options: ControlOptions,
    decide: (row: JobRow, change: JobChange) => Promise<Decision>,
  ): Promise<ControlResult> {
    const result = await this.journal.change(
      async (
        change,
      ): Promise<Exclude<ControlResult, { job: Job }> | { outcome: 'done' | 'wrongState' | 'changed' }> => {
        const row = await change.find(jobId);
        if (row === undefined) return { outcome: 'notFound' };
        const { requestId } = options;
        // The digest contains the name without the tenant, as it did before there were tenants.
        const request = requestId && {
          requestId,
          digest: `${method} ${nameOf(jobId)}`,
          subject: `jobs/${jobId}`,
        };
        if (request) {
          const first = await takeRequest(change.trx, request, change.nowMs);
          if (first !== 'new') return { outcome: first === 'conflict' ? 'conflict' : 'done' };
        }
        const isSeen = (options.version ?? row.version) === row.version;
        const decision = isSeen ? await decide(row, change) : 'changed';
        if (typeof decision === 'string') {
          if (request) await releaseRequest(change.trx, request);
          return { outcome: decision };
        }
        return { outcome: 'done' };
      },
    );
    if (result.outcome === 'notFound' || result.outcome === 'conflict') return result;
    const job = await this.store.find(jobId);
    return job === undefined ? { outcome: 'notFound' } : { outcome: result.outcome, job };
  }
}
