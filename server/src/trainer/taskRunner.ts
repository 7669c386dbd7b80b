import { mkdir } from 'node:fs/promises';
import type { LocatedDocument } from '@relora/engine/data';
import type { Logger } from 'pino';
import type { Config } from '../config.js';
import type { ExportResult } from '../artifacts/artifact.js';
import type { PreparedDataset } from '../datasets/dataset.js';
import type { DeviceDescription } from '../jobs/jobDevices.js';
import type { ModelEvaluation } from '../jobs/modelEvaluations.js';
import type { WeightsReport } from '../weights/weights.js';
import type {
  CardReading,
  CheckWeightsTask,
  DescribeTask,
  DeviceSettings,
  EvaluateTask,
  ExportTask,
  FoundDevices,
  GeneratedPiece,
  GenerateTask,
  LocateTask,
  PreviewedToken,
  PreviewTask,
  Task,
  TaskTypes,
  WatchCardsTask,
} from './messages.js';
import { accessOfTask } from './childAccess.js';
import { Confinement } from './confinement.js';
import { childDevice, isOnProcessors } from './childDevice.js';
import { exportCheckOf } from './exportCheck.js';
import { preparerMemory, trainerMemory } from './childMemory.js';
import { parseExportResult } from './childMessages.js';
import { givingUp, TaskAnswer, TaskFailed } from './taskAnswer.js';
import { TrainerProcess, trainerEntry } from './trainerProcess.js';

export { TaskFailed };

export interface TaskOptions<K extends keyof TaskTypes> {
  /** Ends the child; the task then fails with TASK_ABORTED. */
  signal: AbortSignal;
  /** Null: no limit, as long as it has a heartbeat. */
  timeoutMs: number | null;
  onPart?: (part: TaskTypes[K]['part']) => void;
  log?: Logger;
}

/** Tasks whose memory depends on what a client sent, rather than on a model that was admitted. */
const readsFilesOfClients: ReadonlySet<Task['kind']> = new Set([
  'prepareDataset',
  'previewDataset',
  'locateDocuments',
  'evaluateModel',
  'checkDataset',
  'checkWeights',
]);

/** Number of tasks that may wait for a child; more are refused with TASKS_BUSY. */
const waitingMax = 32;

/** Runs short work that needs the engine in child processes, a few at the same time; a crash there becomes a TaskFailed here. */
export class TaskRunner {
  private readonly processes = new Set<TrainerProcess>();
  private readonly waiting: (() => void)[] = [];
  private runningCount = 0;
  private isStopping = false;

  constructor(
    private readonly config: Config,
    private readonly log: Logger,
    /** Program of the children; default: the trainer. */
    private readonly entry: string = trainerEntry,
    private readonly confinement = new Confinement(config),
  ) {}

  /** What jobs can run on, measured for about a second. */
  async describeDevices(signal: AbortSignal = new AbortController().signal): Promise<FoundDevices> {
    const device = childDevice(this.config, this.config.device);
    const task = { kind: 'describeDevices', device, seeksNccl: this.config.nccl === 'on' } as const;
    const options = { signal, timeoutMs: this.config.taskTimeoutSeconds * 1000 };
    const found = await this.run({ ...task, isTrial: false }, options);
    const cards = found.devices.filter(({ backend }) => backend === 'cuda');
    if (cards.length > 0 && this.confinement.mustTryCards) {
      const problem = await this.tryCards(cards, { ...task, isTrial: true }, options);
      if (!signal.aborted) this.confinement.triedCards(problem, this.log);
    }
    return found;
  }

  /** Whether the same cards work in a confined process: null, or why not. */
  private async tryCards(
    cards: readonly DeviceDescription[],
    task: DescribeTask,
    options: TaskOptions<'describeDevices'>,
  ): Promise<string | null> {
    try {
      const { devices, problems } = await this.run(task, options);
      const lost = cards.find(({ uuid }) => !devices.some((device) => device.uuid === uuid));
      return lost === undefined ? null : (problems[0]?.message ?? `${lost.model} was not found`);
    } catch (error) {
      if (error instanceof TaskFailed) return error.message;
      throw error;
    }
  }

  /** Runs until it is ended, and does not count as one of the concurrent tasks. */
  async watchCards(
    task: Pick<WatchCardsTask, 'intervalMs'>,
    signal: AbortSignal,
    onPart: (readings: CardReading[]) => void,
  ): Promise<null> {
    return await this.runInChild(
      { kind: 'watchCards', ...task, device: childDevice(this.config, 'cuda') },
      { signal, timeoutMs: null, onPart },
    );
  }

  /** For the cards of this machine; takes minutes if all are new. */
  async compileKernels(signal: AbortSignal): Promise<null> {
    return await this.run(
      { kind: 'compileKernels', device: childDevice(this.config, 'cuda') },
      { signal, timeoutMs: null },
    );
  }

  async previewDataset(task: Omit<PreviewTask, 'kind'>, signal: AbortSignal): Promise<PreviewedToken[]> {
    return await this.run(
      { kind: 'previewDataset', ...task },
      { signal, timeoutMs: this.config.taskTimeoutSeconds * 1000 },
    );
  }

  async locateDocuments(task: Omit<LocateTask, 'kind'>, signal: AbortSignal): Promise<LocatedDocument[]> {
    const { dataset, mixture, omittedDocuments, seed, batch, streams } = task.spec;
    return await this.run(
      {
        kind: 'locateDocuments',
        ...task,
        spec: { dataset, mixture, omittedDocuments, seed, batch, streams },
      },
      { signal, timeoutMs: this.config.taskTimeoutSeconds * 1000 },
    );
  }

  /** Has no time limit. */
  async evaluateModel(
    task: Omit<EvaluateTask, 'kind' | 'device'>,
    signal: AbortSignal,
  ): Promise<ModelEvaluation> {
    return await this.run(
      { kind: 'evaluateModel', ...task, device: this.device() },
      { signal, timeoutMs: null },
    );
  }

  /** Fills a new folder with the weights of a checkpoint; has no time limit. */
  async exportWeights(
    { sequenceLength, ...task }: Omit<ExportTask, 'kind' | 'device' | 'check'> & { sequenceLength: number },
    options: { signal: AbortSignal; log: Logger },
  ): Promise<ExportResult> {
    const check = { ...exportCheckOf(this.config), sequenceLength };
    const result = await this.run(
      { kind: 'exportWeights', ...task, check, device: this.device() },
      { ...options, timeoutMs: null },
    );
    const checked = parseExportResult(result);
    if (checked === undefined)
      throw new TaskFailed('TASK_CRASHED', 'The task sent something that is not an export');
    return checked;
  }

  /** Has no time limit. */
  async checkDataset(folder: string, signal: AbortSignal): Promise<PreparedDataset> {
    return await this.run({ kind: 'checkDataset', folder }, { signal, timeoutMs: null });
  }

  async checkWeights(
    task: Omit<CheckWeightsTask, 'kind' | 'tokenizerCpuSeconds'>,
    signal: AbortSignal,
  ): Promise<WeightsReport> {
    return await this.run(
      { kind: 'checkWeights', ...task, tokenizerCpuSeconds: this.config.tokenizerCpuSeconds },
      { signal, timeoutMs: this.config.taskTimeoutSeconds * 1000 },
    );
  }

  /** The last piece has a finishReason. Leaving the loop or aborting ends the child. */
  async *generate(
    task: Omit<GenerateTask, 'kind' | 'device'>,
    signal: AbortSignal,
  ): AsyncGenerator<GeneratedPiece> {
    const ended = new AbortController();
    // Bounded by tokenCountMax, a few bytes each: no back-pressure is needed.
    const pieces: GeneratedPiece[] = [];
    let wake = (): void => {};
    const result = this.run(
      { kind: 'generate', ...task, device: this.device() },
      {
        signal: AbortSignal.any([signal, ended.signal]),
        timeoutMs: this.config.taskTimeoutSeconds * 1000,
        onPart: (piece) => {
          pieces.push(piece);
          wake();
        },
      },
    );
    let isDone = false;
    const done = result
      .then(
        () => {},
        (error: unknown) => error,
      )
      .finally(() => {
        isDone = true;
        wake();
      });
    try {
      for (;;) {
        yield* pieces.splice(0);
        if (isDone) break;
        await new Promise<void>((resolve) => {
          wake = resolve;
          if (pieces.length > 0 || isDone) resolve();
        });
      }
      const error = await done;
      yield* pieces.splice(0);
      if (error !== undefined) throw error;
    } finally {
      ended.abort();
      await done;
    }
  }

  /** Runs one task in a child of its own; throws TaskFailed. */
  async run<K extends keyof TaskTypes>(
    task: Task & { kind: K },
    options: TaskOptions<K>,
  ): Promise<TaskTypes[K]['result']> {
    await this.takePlace(options);
    try {
      return await this.runInChild(task, options);
    } finally {
      this.passPlaceOn();
    }
  }

  /** Ends every child. */
  async stop(): Promise<void> {
    this.isStopping = true;
    for (const process of this.processes) process.terminate();
    await Promise.all([...this.processes].map(async (process) => await process.exited));
  }

  private async runInChild<K extends keyof TaskTypes>(
    task: Task & { kind: K },
    options: TaskOptions<K>,
  ): Promise<TaskTypes[K]['result']> {
    const log = (options.log ?? this.log).child({ task: task.kind });
    const access = accessOfTask(task, this.config);
    // Paths must exist to be allowed.
    for (const path of [this.config.dataFolder, ...(access?.write ?? [])])
      await mkdir(path, { recursive: true });
    const answer = new TaskAnswer<K>(options.onPart);
    const child = this.newChild(task, access, log, (raw) => {
      const is = answer.take(raw);
      if (is === 'unreadable') child.kill();
      else if (is === 'answered') child.killAfterGrace();
    });
    this.processes.add(child);
    const stopWaiting = givingUp(options, (reason, message) => {
      answer.fail(reason, message);
      child.terminate();
    });
    child.send({ type: 'task', task });

    const exit = await child.exited;
    stopWaiting();
    this.processes.delete(child);
    if (answer.given !== undefined) return answer.result();
    log.error({ code: exit.code, signal: exit.signal }, exit.what);
    throw new TaskFailed(
      exit.wasOutOfMemory ? 'OUT_OF_MEMORY' : 'TASK_CRASHED',
      exit.what.replace('The trainer', 'The process of the task'),
    );
  }

  private newChild(
    task: Task,
    access: ReturnType<typeof accessOfTask>,
    log: Logger,
    onMessage: (raw: unknown) => void,
  ): TrainerProcess {
    const { config } = this;
    const isTrial = 'isTrial' in task && task.isTrial;
    return new TrainerProcess({
      entry: this.entry,
      ...(access && { launch: this.confinement.launch(this.entry, { ...access, isTrial }) }),
      folder: config.dataFolder,
      // The threads of a tokenizer library share a pool with those of Node, which has four by default.
      ...('threads' in task && { environment: { UV_THREADPOOL_SIZE: String(task.threads + 4) } }),
      niceValue: config.trainerNice,
      silenceMs: config.trainerSilenceSeconds * 1000,
      busyMs: config.trainerBusySeconds * 1000,
      graceMs: config.trainerGraceSeconds * 1000,
      memory: readsFilesOfClients.has(task.kind) ? preparerMemory(config) : trainerMemory(config),
      log,
      onMessage,
    });
  }

  private async takePlace({
    signal,
    timeoutMs,
  }: {
    signal: AbortSignal;
    timeoutMs: number | null;
  }): Promise<void> {
    if (this.runningCount < this.config.tasksMax) this.runningCount++;
    // A task without a time limit can also wait: a data set does not fail because others generate text.
    else if (this.waiting.length >= waitingMax && timeoutMs !== null)
      throw new TaskFailed('TASKS_BUSY', 'Too many tasks wait for a process; try again later');
    else await this.waitForPlace(signal);
    if (!signal.aborted && !this.isStopping) return;
    this.passPlaceOn();
    throw new TaskFailed('TASK_ABORTED', 'The task was given up');
  }

  /** Resolves with the place of a finished task; it stays counted as taken, so that no other task gets it in between. */
  private async waitForPlace(signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const take = (): void => {
        signal.removeEventListener('abort', leave);
        resolve();
      };
      const leave = (): void => {
        this.waiting.splice(this.waiting.indexOf(take), 1);
        reject(new TaskFailed('TASK_ABORTED', 'The task was given up'));
      };
      if (signal.aborted) return reject(new TaskFailed('TASK_ABORTED', 'The task was given up'));
      this.waiting.push(take);
      signal.addEventListener('abort', leave, { once: true });
    });
  }

  private passPlaceOn(): void {
    const next = this.waiting.shift();
    if (next === undefined) this.runningCount--;
    else next();
  }

  private device(): DeviceSettings {
    const { device } = this.config;
    return childDevice(this.config, isOnProcessors(device) ? device : 'native');
  }
}
