import { createHash } from 'node:crypto';
import * as contract from '../contract.js';
import { isTerminal } from '../jobState.js';

/** What a job of the test server does. */
export interface JobScript {
  /** Number of its steps; default: that of its specification, or 10. */
  steps?: number;
  /** Loss of each step; default: it falls from 4. */
  loss?: (step: number) => number;
  /** Steps between restarts and between checkpoints; default: a tenth of the steps, at least 2. */
  restartEvery?: number;
  checkpointEvery?: number;
  /** Duration of a step in milliseconds; default 0: a job is done in a moment. */
  stepMs?: number;
  /** The step before which it fails, with reason and message. */
  fail?: { step: number; reason: string; message?: string };
  /** Files of its model; default: a small one. */
  files?: Record<string, Uint8Array>;
}

type EventBody = Omit<
  contract.DeepPartial<contract.JobEvent>,
  'sequence' | 'firstSequence' | 'time' | 'final'
>;

const { JobState } = contract;

/** One job of the test server: its state, its journal as in the contract, and its behavior according to the script. */
export class ScriptedJob {
  readonly job: contract.Job;
  readonly events: contract.JobEvent[] = [];
  readonly files: Record<string, Uint8Array>;
  private readonly waiting = new Set<() => void>();
  private step = 0;
  private version = 1;
  private ended = Promise.resolve();

  constructor(
    request: contract.CreateJobRequest,
    readonly script: JobScript,
  ) {
    const now = new Date();
    this.job = contract.Job.fromPartial({
      name: `jobs/${request.jobId}`,
      displayName: request.displayName,
      labels: request.labels,
      ...(request.spec === undefined ? {} : { spec: request.spec }),
      state: JobState.QUEUED,
      progress: { stepCount: script.steps ?? (request.spec?.stepCount || 10) },
      createTime: now,
      updateTime: now,
    });
    this.files = script.files ?? { 'model.safetensors': Buffer.from(`weights of ${this.job.name}`) };
    this.append({ state: { to: JobState.QUEUED, reason: 'Created' } });
  }

  /** Runs until the end, a pause or a cancellation: after the step that a job which was paused is still in. */
  async run(): Promise<void> {
    this.ended = this.ended.then(async () => await this.train());
    await this.ended;
  }

  private async train(): Promise<void> {
    if (this.job.state !== JobState.QUEUED) return;
    this.job.attempt++;
    this.move(JobState.STARTING, 'A trainer starts');
    this.move(JobState.RUNNING, 'Training');
    const { stepMs = 0, fail } = this.script;
    while (this.isIn(JobState.RUNNING) && this.step < this.stepCount) {
      if (fail?.step === this.step) this.end(JobState.FAILED, fail);
      else {
        this.takeStep();
        await new Promise((resolve) => (stepMs > 0 ? setTimeout(resolve, stepMs) : setImmediate(resolve)));
      }
    }
    if (!this.isIn(JobState.RUNNING)) return;
    this.append({
      artifact: { artifact: `${this.job.name}/artifacts/model`, sizeBytes: this.artifact().sizeBytes },
    });
    this.end(JobState.SUCCEEDED);
  }

  /** Whether it could be paused. */
  pause(): boolean {
    if (this.job.state === JobState.PAUSED) return true;
    if (isTerminal(this.job.state)) return false;
    if (this.job.state === JobState.RUNNING) this.checkpoint();
    this.move(JobState.PAUSED, 'Paused');
    return true;
  }

  resume(): boolean {
    if (this.job.state !== JobState.PAUSED) return false;
    this.move(JobState.QUEUED, 'Resumed');
    return true;
  }

  cancel(): boolean {
    if (isTerminal(this.job.state)) return this.job.state === JobState.CANCELLED;
    this.end(JobState.CANCELLED);
    return true;
  }

  /** The model that it produces. */
  artifact(): contract.Artifact {
    const files = Object.entries(this.files).map(([fileName, bytes]) => ({
      fileName,
      sizeBytes: bytes.length,
      sha256: createHash('sha256').update(bytes).digest('hex'),
    }));
    return contract.Artifact.fromPartial({
      name: `${this.job.name}/artifacts/model`,
      kind: contract.ArtifactKind.MERGED_MODEL,
      state: contract.ArtifactState.READY,
      format: contract.ExportFormat.HUGGING_FACE,
      step: this.step,
      files,
      sizeBytes: files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
      createTime: new Date(),
    });
  }

  /** Resolves when there is another event, or the signal aborts. */
  async changed(signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve) => {
      const wake = (): void => {
        this.waiting.delete(wake);
        signal.removeEventListener('abort', wake);
        resolve();
      };
      this.waiting.add(wake);
      signal.addEventListener('abort', wake);
      if (signal.aborted) wake();
    });
  }

  /** The current state: others change it while a step is awaited. */
  private isIn(state: contract.JobState): boolean {
    return this.job.state === state;
  }

  private get stepCount(): number {
    return this.job.progress!.stepCount;
  }

  private takeStep(): void {
    const { loss = (step: number) => 4 / (1 + step / 10) } = this.script;
    const every = Math.max(2, Math.floor(this.stepCount / 10));
    const { restartEvery = every, checkpointEvery = every } = this.script;
    const { step } = this;
    if (step > 0 && step % restartEvery === 0) {
      this.job.progress!.restartCount++;
      this.append({ restart: { step, restart: this.job.progress!.restartCount } });
    }
    const value = loss(step);
    this.step = step + 1;
    this.job.progress = { ...this.job.progress!, step: this.step, loss: value };
    this.append({
      step: {
        step,
        loss: value,
        learningRate: 1e-3,
        tokenCount: 64,
        trainedTokens: 64 * this.step,
        stepSeconds: 0.01,
      },
    });
    if (this.step % checkpointEvery === 0) this.checkpoint();
  }

  private checkpoint(): void {
    this.job.progress!.checkpointStep = this.step;
    this.append({ checkpoint: { step: this.step, sizeBytes: 1000 } });
  }

  private end(to: contract.JobState, failure?: { reason: string; message?: string }): void {
    this.job.endTime = new Date();
    if (failure !== undefined)
      this.job.failure = contract.JobFailure.fromPartial({ message: failure.reason, ...failure });
    this.move(to, failure?.message ?? 'Ended');
  }

  private move(to: contract.JobState, reason: string): void {
    const from = this.job.state;
    this.job.state = to;
    this.job.stateReason = reason;
    this.job.etag = `"${++this.version}"`;
    if (to === JobState.STARTING) this.job.startTime ??= new Date();
    this.append({ state: { from, to, reason, failure: this.job.failure } });
  }

  private append(body: EventBody): void {
    const sequence = this.events.length + 1;
    const time = new Date();
    this.events.push(
      contract.JobEvent.fromPartial({
        ...body,
        sequence,
        firstSequence: sequence,
        time,
        attempt: this.job.attempt,
        final: body.state !== undefined && isTerminal(this.job.state),
      }),
    );
    this.job.lastSequence = sequence;
    this.job.updateTime = time;
    for (const wake of this.waiting) wake();
  }
}
