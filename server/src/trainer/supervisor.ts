import { mkdir, statfs, type FileHandle } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { readDatasetNames, type RunSpec } from '@relora/engine/plan';
import type { BaseWeightsBefore } from '@relora/engine';
import type { Logger } from 'pino';
import type { ArtifactStore } from '../artifacts/artifactStore.js';
import type { Config } from '../config.js';
import type { DatasetStore } from '../datasets/datasetStore.js';
import type { Checkpoint, CheckpointStore } from '../jobs/checkpointStore.js';
import type { GangPlaces, GangShare } from '../jobs/gangPlaces.js';
import { hasTrainer, type Job } from '../jobs/job.js';
import { isOnCards } from '../jobs/jobDevices.js';
import type { JobAttempts, RetryRule } from '../jobs/jobAttempts.js';
import type { ServerFailure } from '../jobs/jobFailures.js';
import type { JobQueue } from '../jobs/jobQueue.js';
import type { JobStore } from '../jobs/jobStore.js';
import { storageCures, storageFault } from '../store/storageFault.js';
import { isPassing, isStoreBroken } from '../store/storeError.js';
import type { ChangeFeed } from '../store/changeFeed.js';
import type { Leases } from '../store/leases.js';
import { BlobDamaged, type Stage } from '../store/stage.js';
import { folders, namedWeights } from '../store/folders.js';
import type { TrainOrder } from './messages.js';
import { RunningJob, type TrainerOutcome } from './runningJob.js';
import { recoverJobs } from './recoverJobs.js';
import { accessOfTrainer } from './childAccess.js';
import { Confinement, withFlags } from './confinement.js';
import { childDevice } from './childDevice.js';
import { GangMember } from './gangMember.js';
import { LedGang, type Environments } from './ledGang.js';
import { mpiHostOf } from './mpirun.js';
import { exportCheckOf } from './exportCheck.js';
import { trainerMemory } from './childMemory.js';
import { openRankMemory } from './rankMemory.js';
import type { Slot, Slots } from './slots.js';
import { trainerEntry, type ProcessOptions } from './trainerProcess.js';
import { idIn, tenantOf } from '../store/tenantIds.js';
import type { WeightsStore } from '../weights/weightsStore.js';

export interface SupervisorParts {
  config: Config;
  store: JobStore;
  queue: JobQueue;
  gangPlaces: GangPlaces;
  feed: ChangeFeed;
  leases: Leases;
  stage: Stage;
  attempts: JobAttempts;
  checkpoints: CheckpointStore;
  artifacts: ArtifactStore;
  datasets: DatasetStore;
  weights: WeightsStore;
  slots: Slots;
  log: Logger;
  /** The store failed: nothing can be promised any more; the process should end and be started again. */
  onStoreFailure(error: unknown): void;
  /** Program of the children; default: the trainer. */
  entry?: string;
  /** Default: from the settings. */
  confinement?: Confinement;
}

/** How a trainer process ended, for metrics. */
export interface TrainerExit {
  jobId: string;
  attempt: number;
  outcome: TrainerOutcome;
}

/** Messages that a trainer may be ahead of the journal. */
const unacknowledgedMax = 64;
/** Pause before retrying a job that could not start for lack of disk space. */
const lowDiskRetryMs = 5000;

/** Pause before checking again whether a card is available. */
const cardRetryMs = 5000;

/**
 * A trainer creates little garbage. With Node's default its heap grows by about 15 MB, or does not, by chance: a twentieth of a small
 * model's memory.
 */
const trainerFlags = ['--max-semi-space-size=2'];

/** Keeps the slots busy: one trainer process per running job, watched, fenced by its attempt, and replaced after a crash. */
export class Supervisor {
  private readonly running = new Map<string, RunningJob>();
  private begun = 0;
  /** Jobs on several servers that this one leads, until their trainers are started. */
  private readonly forming = new Map<string, Promise<void>>();
  private readonly led = new Map<string, LedGang>();
  /** The ranks on this server of jobs that others lead, until their attempt is over. */
  private readonly memberships = new Map<string, Membership>();
  /** Slots that are kept for a job which also needs slots of other servers. */
  private offer: { jobId: string; slot: Slot } | null = null;
  private watching: Promise<void> | undefined;
  /** Claimed jobs that could not be launched; they return to the queue before anything else is claimed. */
  private readonly unlaunched: Unlaunched[] = [];
  private readonly exitListeners = new Set<(exit: TrainerExit) => void>();
  private filling: Promise<void> | undefined;
  private isFillWanted = false;
  private isStarted = false;
  private isStopping = false;
  /** Whether the jobs of the previous server were recovered. */
  private isRecovered = false;
  private retryTimer: NodeJS.Timeout | undefined;
  private stopListening: (() => void) | undefined;

  private readonly confinement: Confinement;

  constructor(private readonly parts: SupervisorParts) {
    this.confinement = parts.confinement ?? new Confinement(parts.config);
  }

  /** Queues jobs again that a dead server had, removes unfinished files, and begins to fill the slots. */
  async start(): Promise<void> {
    // A full disk must not keep the server from answering: what cannot be recovered yet is recovered before anything is claimed.
    await this.recover().catch((error: unknown) => {
      if (!isPassing(error)) throw error;
    });
    this.isStarted = true;
    this.stopListening = this.parts.feed.listen((change) => {
      if (change === null) return void this.lookAgain();
      if (change.topic !== 'job') return;
      if (change.stopRequest !== null) this.running.get(change.id)?.stop(change.stopRequest);
      this.steer(change.id, change.updateNumber);
      // When a job ends elsewhere, its owner may be below the limit again.
      if (change.state !== 'starting' && change.state !== 'running') this.fill();
      if (this.memberships.has(change.id) || this.offer?.jobId === change.id) this.watchGangs();
    });
    this.fill();
  }

  get slotCount(): number {
    return this.parts.slots.count;
  }

  /** Of processors and cards together. */
  get slotsInUse(): number {
    return this.parts.slots.inUse;
  }

  get runningCount(): number {
    return this.running.size;
  }

  /** Number of executions so far. */
  get begunCount(): number {
    return this.begun;
  }

  /** Process id of a running job's trainer. */
  trainerPid(jobId: string): number | undefined {
    return this.running.get(jobId)?.pid;
  }

  /** Process ids of all ranks of a running job, the first rank first. */
  rankPids(jobId: string): number[] {
    const pids = [
      ...(this.running.get(jobId)?.pids ?? []),
      ...(this.memberships.get(jobId)?.member.pids ?? []),
    ];
    return pids.filter((pid) => pid !== undefined);
  }

  /** See RunningJob; resolves at once if the job has no trainer. */
  async saveCheckpoint(jobId: string): Promise<string | null> {
    return (await this.running.get(jobId)?.saveCheckpoint()) ?? null;
  }

  /** Returns the function that ends it. */
  onExit(listener: (exit: TrainerExit) => void): () => void {
    this.exitListeners.add(listener);
    return () => this.exitListeners.delete(listener);
  }

  /**
   * Claims no more jobs, has every trainer save a checkpoint and stop, and kills those that have not stopped in time. Their jobs are queued
   * again.
   */
  async stop(timeoutMs: number): Promise<void> {
    this.isStopping = true;
    this.stopListening?.();
    clearTimeout(this.retryTimer);
    await this.filling;
    await this.watching;
    // Their jobs resume from their last checkpoints.
    for (const { member } of this.memberships.values()) member.end();
    await Promise.all(this.forming.values());
    const runs = [...this.running.values()];
    for (const run of runs) run.stop('shutdown');
    const timer = setTimeout(() => {
      for (const run of runs) run.abandon();
    }, timeoutMs);
    await Promise.all(runs.map(async (run) => await run.done));
    await Promise.all([...this.memberships.values()].map(async ({ member }) => await member.done));
    clearTimeout(timer);
  }

  private async recover(): Promise<void> {
    const { leases } = this.parts;
    // With several servers, one may die at any time; otherwise only the previous server can have left jobs.
    if (leases.isShared ? !leases.mayTakeOver : this.isRecovered) return;
    await recoverJobs(this.parts);
    this.isRecovered = true;
  }

  /** Catches up on missed notifications: requests for running jobs, and new jobs. */
  private async lookAgain(): Promise<void> {
    this.fill();
    this.watchGangs();
    for (const [jobId, run] of this.running) {
      // If the store cannot be read now, the next round checks again.
      const job = await this.parts.store.find(jobId).catch(() => undefined);
      if (job !== undefined && job.stopRequest !== null) run.stop(job.stopRequest);
      if (job !== undefined) this.steer(jobId, job.updateNumber);
    }
  }

  /** Fills the slots. A call while it works makes it look again, so that no job queued meanwhile is missed. */
  fill(): void {
    if (!this.isStarted || this.isStopping) return;
    this.isFillWanted = true;
    this.filling ??= this.fillSlots()
      .catch((error: unknown) => {
        if (isStoreBroken(error)) {
          this.parts.log.fatal({ err: error }, 'Jobs cannot be claimed: the store is broken');
          return this.parts.onStoreFailure(error);
        }
        this.parts.log.error(
          { err: error },
          `No job starts${isPassing(error) ? ': the disk is full, or the database is away' : ''}`,
        );
        this.fillAfter(lowDiskRetryMs);
      })
      .finally(() => {
        this.filling = undefined;
        if (this.isFillWanted && !this.isStopping) this.fill();
      });
  }

  private async fillSlots(): Promise<void> {
    this.isFillWanted = false;
    await this.recover();
    await this.gatherGangs();
    try {
      await this.claimAll();
    } finally {
      this.parts.slots.giveUnused();
    }
  }

  private async claimAll(): Promise<void> {
    const { slots, leases } = this.parts;
    while (!this.isStopping) {
      const devices = leases.isShared
        ? await slots.ofFleet()
        : {
            free: await slots.free(),
            places: slots.places,
            pins: null,
            resolve: (spec: RunSpec) => slots.resolve(spec),
          };
      const { free } = devices;
      if (free.length === 0) return await this.explainNoCard();
      await this.giveBackUnlaunched();
      const freeBytes = await freeDiskBytes(this.parts.config.dataFolder);
      if (freeBytes < this.parts.config.freeDiskBytesMin) {
        this.parts.log.warn(
          { freeBytes, neededBytes: this.parts.config.freeDiskBytesMin },
          'No job starts: the disk is almost full',
        );
        return this.fillAfter(lowDiskRetryMs);
      }
      const claim = await this.parts.queue.claimNext(devices);
      if (!('job' in claim)) {
        // There is no event when another server releases a card, which a first job may need in addition to the free ones.
        let delayMs = slots.areCardsElsewhere && free.includes('cuda') ? cardRetryMs : Infinity;
        if (!free.includes('cuda')) await this.explainNoCard();
        else await this.explainNoFp8Card();
        if (claim.notBeforeMs !== null)
          delayMs = Math.min(delayMs, Math.max(1, claim.notBeforeMs - this.parts.leases.now()));
        if (delayMs < Infinity) this.fillAfter(delayMs);
        return;
      }
      const slot = slots.take(claim.device, claim.processes, claim.job.spec.precision);
      slots.giveUnused(); // a launch can take minutes
      await this.launch(claim.job, slot, false);
    }
  }

  private hold({ id, attempt }: Job): () => void {
    return this.parts.leases.hold('jobs', id, attempt, () => this.running.get(id)?.abandon());
  }

  /** Keeps free slots for a first job that needs those of several servers, and starts it once there are enough. */
  private async gatherGangs(): Promise<void> {
    const { config, slots, queue } = this.parts;
    if (config.mpirun === '') return;
    while (!this.isStopping) {
      await this.joinGangs();
      const { offer } = this;
      const devices = await slots.ofFleet(offer?.slot);
      const gathered = await queue.gather(devices, offer?.jobId ?? null);
      if (gathered === 'takenUp') continue;
      this.withdrawOffer();
      if ('job' in gathered) {
        const { job, device, count } = gathered;
        const slot = slots.take(device, count, job.spec.precision);
        // Other servers may take minutes to copy what the job reads.
        const forming = this.launch(job, slot, true).finally(() => {
          this.forming.delete(job.id);
          if (!this.isStopping) this.fill();
        });
        this.forming.set(job.id, forming);
        continue;
      }
      if (gathered.offered !== null) {
        const device = gathered.on === 'cards' ? 'cuda' : 'native';
        this.offer = { jobId: gathered.offered, slot: slots.take(device, slots.places[gathered.on].free) };
      }
      return;
    }
  }

  private withdrawOffer(): void {
    if (this.offer !== null) this.parts.slots.give(this.offer.slot);
    this.offer = null;
  }

  /** Checks whether offers were accepted, and whether the attempts with ranks on this server continue. */
  private watchGangs(): void {
    if (this.parts.config.mpirun === '' || !this.isStarted || this.isStopping) return;
    this.watching ??= this.watchOnce()
      .catch((error: unknown) =>
        this.parts.log.warn({ err: error }, 'Jobs over several servers were not looked at'),
      )
      .finally(() => (this.watching = undefined));
  }

  private async watchOnce(): Promise<void> {
    const { store, gangPlaces } = this.parts;
    if (this.offer !== null) this.fill(); // this joins the attempt if the offer was accepted
    for (const gang of this.led.values()) await gang.check();
    for (const [jobId, { attempt, member }] of this.memberships) {
      const job = await store.find(jobId);
      if (job?.attempt === attempt && hasTrainer(job.state)) continue;
      member.end();
      await member.done;
      this.memberships.delete(jobId);
      await gangPlaces.leave(jobId, attempt);
    }
  }

  /** Starts the ranks on this server of attempts that others lead. */
  private async joinGangs(): Promise<void> {
    for (const [jobId, share] of await this.parts.gangPlaces.ofOwn()) {
      const { attempt, count, device } = share;
      const isLed = this.forming.has(jobId) || this.running.has(jobId);
      if (isLed || this.memberships.get(jobId)?.attempt === attempt) continue;
      const earlier = this.memberships.get(jobId);
      earlier?.member.end();
      await earlier?.member.done;
      const job = await this.parts.store.find(jobId);
      // A share of an attempt that is over, or from before this server was started.
      if (job?.attempt !== attempt || !hasTrainer(job.state) || this.offer?.jobId !== jobId) {
        await this.parts.gangPlaces.leave(jobId, attempt);
        continue;
      }
      const slot = { ...this.parts.slots.keep(this.offer.slot, count), device };
      this.offer = null;
      this.memberships.set(jobId, { attempt, member: this.join(job, share, slot) });
    }
  }

  private join(job: Job, share: GangShare, slot: Slot): GangMember {
    const { gangPlaces, log, slots } = this.parts;
    const ranks = Array.from({ length: share.count }, (_, index) => share.firstRank + index);
    let prepared: PreparedRun | undefined;
    const member = new GangMember({
      ranks,
      log: log.child({ jobId: job.id, attempt: job.attempt }),
      ready: async (command) => {
        const { firstRank: rank, size } = share;
        const member = { rank, size, by: 'mpi', mayConnect: this.mayConnect(job, slot) } as const;
        prepared = await this.prepare(job, slot, member);
        if ('problem' in prepared) throw new Error(prepared.problem);
        const { order } = prepared;
        for (const { jobFolder } of ordersOf(order, ranks, slot)) await mkdir(jobFolder, { recursive: true });
        return await gangPlaces.ready(job.id, job.attempt, { host: this.mpiHost, command });
      },
      processes: (environments) => {
        const { order } = prepared as Exclude<PreparedRun, { problem: string }>;
        return ordersOf(order, ranks, slot).map((its) => ({
          order: its,
          process: this.processOf(its, { environment: environments.get(its.member!.rank)! }),
        }));
      },
    });
    void member.done.then(async (wasStarted) => {
      if (prepared !== undefined && 'taken' in prepared) for (const give of prepared.taken) give();
      slots.give(slot);
      if (!this.isStopping) this.fill();
      // Done at once, so that the leading server does not wait.
      if (!wasStarted) await gangPlaces.leave(job.id, job.attempt).catch(() => {});
    });
    return member;
  }

  private get mpiHost(): string {
    return mpiHostOf(this.parts.config)!; // a server without a name takes no part
  }

  /** Polled: there is no event when another server releases a card or when somebody repairs one. */
  private async explainNoCard(): Promise<void> {
    const { slots, queue } = this.parts;
    const why = await slots.whyNoCard();
    const isWaiting = why === null ? slots.areCardsElsewhere : await queue.explainWait(['cuda'], why);
    if (isWaiting) this.fillAfter(cardRetryMs);
  }

  /** Cards that changed since the job was created, or that were not known then. In a store with other servers, one of those may have others. */
  private async explainNoFp8Card(): Promise<void> {
    const { slots, queue, leases } = this.parts;
    const why = leases.isShared ? null : slots.whyNoFp8Card();
    if (why !== null) await queue.explainWait(['cuda'], why, { isOfFp8: true });
  }

  private async giveBackUnlaunched(): Promise<void> {
    const { attempts, config } = this.parts;
    for (let entry = this.unlaunched[0]; entry !== undefined; entry = this.unlaunched[0]) {
      const { job, what, damage, release } = entry;
      const key = { jobId: job.id, attempt: job.attempt };
      if (damage === null) await attempts.notStarted(key, what, lowDiskRetryMs);
      else await attempts.crashed(key, what, retryRule(config), { reason: damage });
      release();
      this.unlaunched.shift();
    }
  }

  private fillAfter(delayMs: number): void {
    clearTimeout(this.retryTimer);
    if (this.isStopping) return;
    this.retryTimer = setTimeout(() => this.fill(), delayMs);
  }

  /** Never rejects: a job that cannot be started returns to the queue. */
  private async launch(job: Job, slot: Slot, isGang: boolean): Promise<void> {
    const release = this.hold(job);
    try {
      await this.launchOn(job, slot, release, isGang);
    } catch (error) {
      const fault = storageFault(error);
      const why = fault ? `${fault.message}; ${storageCures[fault.reason]}` : (error as Error).message;
      const what = `The trainer could not be started (${why})`;
      this.parts.log.error({ jobId: job.id, err: error }, what);
      this.unlaunched.push({
        job,
        what,
        damage: error instanceof InputDamaged ? error.reason : null,
        release,
      });
    } finally {
      if (!this.running.has(job.id)) this.parts.slots.give(slot);
    }
  }

  /** Copies what a trainer of a job reads to this machine, and makes its order; or says why the job cannot run. */
  private async prepare(job: Job, slot: Slot, member: TrainOrder['member']): Promise<PreparedRun> {
    const { config, artifacts, datasets, stage, log } = this.parts;
    const names = readDatasetNames(job.spec);
    const datasetIds = names.map((name) => idIn(tenantOf(job.id), name.replace(/^datasets\//, '')));
    for (const [index, datasetId] of datasetIds.entries()) {
      const dataset = await datasets.findHead(datasetId);
      if (dataset?.state === 'ready') continue;
      return {
        problem: `${names[index]} is ${dataset === undefined ? 'not there any more' : dataset.state}`,
      };
    }
    const jobFolder = folders.job(config.dataFolder, job.id);
    await mkdir(jobFolder, { recursive: true });
    await artifacts.clearOrphans(job.id).catch((error: unknown) => {
      log.warn({ jobId: job.id, err: error }, 'Leftovers could not be removed');
    });
    const taken: (() => void)[] = [stage.keep(`jobs/${job.id}`)];
    const inputs = datasetIds.map((datasetId) => `datasets/${datasetId}/prepared`);
    // The folder is computed: the data folder may have moved since the job was created.
    const base = namedWeights(tenantOf(job.id), job.spec.baseWeightsName);
    if (base !== null) inputs.push(base);
    try {
      for (const input of inputs)
        taken.push(
          await takeInput(stage, input, input === base ? 'BASE_WEIGHTS_CHANGED' : 'DATASET_CORRUPT'),
        );
      const datasetFolders = datasetIds.map((datasetId) => datasets.preparedFolder(datasetId));
      return { order: await this.orderOf(job, { datasetFolders, base }, slot, member, taken), inputs, taken };
    } catch (error) {
      for (const give of taken) give();
      throw error;
    }
  }

  private processOf(
    order: TrainOrder,
    of: Pick<ProcessOptions, 'sharedFile' | 'environment'> = {},
  ): Omit<ProcessOptions, 'onMessage' | 'onLine' | 'log'> {
    const { config, entry = trainerEntry } = this.parts;
    return {
      entry,
      launch: withFlags(trainerFlags, this.confinement.launch(entry, accessOfTrainer(order))),
      folder: order.jobFolder,
      niceValue: config.trainerNice,
      sharedFile: of.sharedFile,
      environment: { ...environmentOf(order, this.parts.slots), ...of.environment },
      silenceMs: config.trainerSilenceSeconds * 1000,
      busyMs: config.trainerBusySeconds * 1000,
      graceMs: config.trainerGraceSeconds * 1000,
      memory: trainerMemory(config),
    };
  }

  private async launchOn(job: Job, slot: Slot, release: () => void, isGang: boolean): Promise<void> {
    const { config, attempts, checkpoints, store, stage, log, gangPlaces, leases } = this.parts;
    const key = { jobId: job.id, attempt: job.attempt };
    // For several servers, the total number of ranks is known later, when all have their places.
    const by = isGang ? 'mpi' : 'memory';
    const member = { rank: 0, size: slot.count, by, mayConnect: this.mayConnect(job, slot) } as const;
    const isOne = slot.count === 1 && !isGang;
    const prepared = await this.prepare(job, slot, isOne ? null : member);
    if ('problem' in prepared) {
      const { problem: message } = prepared;
      await attempts.failed(key, { reason: 'DATASET_NOT_READY' satisfies ServerFailure, message });
      return release();
    }
    const { inputs, taken } = prepared;
    let { order } = prepared;
    const releaseAll = (): void => {
      for (const give of taken) give();
      release();
    };
    const ranks = Array.from({ length: slot.count }, (_, rank) => rank);
    let memory: FileHandle | undefined;
    let gang: LedGang | null = null;
    let environments: Environments = new Map();
    try {
      for (const { jobFolder: folder } of ordersOf(order, ranks, slot))
        await mkdir(folder, { recursive: true });
      if (isGang) {
        const parts = {
          ...{ settings: config, host: this.mpiHost, places: gangPlaces, leases, log },
          ...{ folder: order.jobFolder, isGivenUp: () => this.isStopping },
          startMs: config.mpiStartSeconds * 1000,
        };
        ({ gang, environments } = await LedGang.form(parts, job));
        this.led.set(job.id, gang);
        order = { ...order, member: { ...order.member!, size: gang.size } };
      } else if (slot.count > 1) memory = await openRankMemory(slot.count, order.jobFolder);
    } catch (error) {
      for (const give of taken) give();
      throw error;
    }
    const [first, ...others] = ordersOf(order, ranks, slot).map((its) => {
      const environment = environments.get(its.member?.rank ?? 0) ?? {};
      return { order: its, process: this.processOf(its, { environment, sharedFile: memory?.fd }) };
    });
    const run = new RunningJob(
      {
        attempts,
        checkpoints,
        stage,
        inputs,
        dataFolder: config.dataFolder,
        process: first!.process,
        ranks: others,
        gang,
        retry: retryRule(config),
        logBytesMax: config.jobLogBytesMax,
        log,
        onStoreFailure: this.parts.onStoreFailure,
      },
      job,
      order,
    );
    await memory?.close(); // the processes have it open
    this.running.set(job.id, run);
    this.begun++;
    void run.done.then((outcome) => {
      this.running.delete(job.id);
      this.led.delete(job.id);
      releaseAll();
      this.parts.slots.give(slot);
      for (const listener of this.exitListeners) listener({ ...key, outcome });
      if (!this.isStopping) this.fill();
    });
    // A request that came between the claim and this line found no trainer. If the store cannot be read now, a later round checks again.
    const { stopRequest, updateNumber } = (await store.find(job.id).catch(() => undefined)) ?? job;
    if (stopRequest !== null) run.stop(stopRequest);
    this.steer(job.id, updateNumber);
  }

  /** Whether cards add gradients among themselves, in float32. */
  private mayConnect({ spec }: Job, { device }: Slot): boolean {
    return this.parts.slots.canConnectCards && isOnCards(device) && spec.reductionType === 'float32';
  }

  /** Sends a running job's trainer the updates that it does not have. */
  private steer(jobId: string, updateNumber: number): void {
    const run = this.running.get(jobId);
    if (run === undefined || run.updateNumber >= updateNumber) return;
    this.parts.store.updatesOf(jobId).then(
      (updates) => run.update(updates),
      // It is stored: the next update, or the next attempt, delivers it.
      (error: unknown) => this.parts.log.error({ jobId, err: error }, 'A change of a job could not be read'),
    );
  }

  /** What the trainer should do, and from which state. */
  private async orderOf(
    job: Job,
    { datasetFolders, base }: { datasetFolders: readonly string[]; base: string | null },
    { device, cards }: Slot,
    member: TrainOrder['member'],
    taken: (() => void)[],
  ): Promise<TrainOrder> {
    const { config, artifacts, stage } = this.parts;
    const kept = await this.takeCheckpoints(job);
    if (job.origin !== null && kept.length === 0) {
      const origin = `jobs/${job.origin.jobId}/checkpoints/${job.origin.folder}`;
      taken.push(await takeInput(stage, origin, 'CHECKPOINT_CORRUPT'));
    }
    return {
      jobId: job.id,
      attempt: job.attempt,
      spec: job.spec,
      device: childDevice(config, device, { share: config.slots, uuid: cards[0] }),
      baseWeightsFolder: base === null ? job.spec.baseWeightsFolder : join(config.dataFolder, base),
      baseWeightsBefore: {
        files: await this.baseWeightsFiles(job),
        // The digest depends on how the device stores the weights.
        sha256: job.execution?.backend === device ? job.execution.baseWeightsSha256 : null,
      },
      jobFolder: folders.job(config.dataFolder, job.id),
      member,
      datasetFolders,
      baseWeightsBeneath: job.spec.baseWeightsName === null ? config.allowedFolders : null,
      checkpoints: kept.map(({ folder, manifestSha256 }) => ({ path: folder, manifestSha256 })),
      origin: await this.originOf(job),
      exportedFormats: await artifacts.formatsAt(
        job.id,
        job.spec.export.weights === 'best' && job.progress.best
          ? job.progress.best.step
          : job.progress.stepCount,
      ),
      exportCheck: exportCheckOf(config),
      unacknowledgedMax,
      updates: await this.parts.store.updatesOf(job.id),
      startTimeMs: job.startTimeMs ?? Date.now(),
      deviceSeconds: job.spec.stop.deviceHours > 0 ? await this.parts.store.deviceSeconds(job) : 0,
      stopStep: job.progress.stop?.step ?? null,
    };
  }

  /** The files of named base weights as they were sealed; none for weights at a path. */
  private async baseWeightsFiles({ id, spec }: Job): Promise<BaseWeightsBefore['files']> {
    const { artifacts, weights } = this.parts;
    const name = namedWeights(tenantOf(id), spec.baseWeightsName);
    const [kind, ofId = '', , artifactId = ''] = name?.split('/') ?? [];
    const found =
      kind === 'weights'
        ? await weights.find(ofId)
        : kind === 'jobs' && (await artifacts.find(ofId, artifactId));
    return (found || { files: [] }).files.map(({ fileName, sizeBytes, sha256 }) => ({
      fileName,
      sizeBytes,
      sha256,
    }));
  }

  /** Copies the checkpoints of a job to this machine, where it is kept. One that is damaged in the store is not used again. */
  private async takeCheckpoints(job: Job): Promise<Checkpoint[]> {
    const { attempts, checkpoints, stage } = this.parts;
    const kept: Checkpoint[] = [];
    for (const checkpoint of await checkpoints.list(job.id)) {
      const name = basename(checkpoint.folder);
      try {
        (await stage.take(`jobs/${job.id}/checkpoints/${name}`))(); // released at once: its own run deletes old ones
        kept.push(checkpoint);
      } catch (error) {
        if (!(error instanceof BlobDamaged)) throw error;
        const key = { jobId: job.id, attempt: job.attempt };
        await attempts.checkpointCorrupt(key, checkpoint.folder, error.message);
      }
    }
    return kept;
  }

  private async originOf({ origin }: Job): Promise<TrainOrder['origin']> {
    if (origin === null) return null;
    const { jobId, folder, manifestSha256 } = origin;
    const { spec } = (await this.parts.store.find(jobId))!; // a job that others begin at cannot be deleted
    return {
      path: join(folders.checkpoints(this.parts.config.dataFolder, jobId), folder),
      manifestSha256,
      spec,
    };
  }
}

/** The order of a trainer, whose inputs are on this machine; `problem`: why it cannot run. */
type PreparedRun =
  { order: TrainOrder; inputs: readonly string[]; taken: readonly (() => void)[] } | { problem: string };

/** A job that was claimed and could not be launched. */
interface Unlaunched {
  job: Job;
  what: string;
  /** How the job fails if one of its inputs stays damaged; null if something else was in the way. */
  damage: InputDamaged['reason'] | null;
  release: () => void;
}

/** What a job reads is damaged in the store, or a read from it went wrong: only further attempts can tell. */
class InputDamaged extends Error {
  constructor(
    readonly reason: 'DATASET_CORRUPT' | 'BASE_WEIGHTS_CHANGED' | 'CHECKPOINT_CORRUPT',
    cause: BlobDamaged,
  ) {
    super(cause.message, { cause });
  }
}

/** Has a folder that a job reads on this machine. Throws InputDamaged. */
async function takeInput(stage: Stage, folder: string, reason: InputDamaged['reason']): Promise<() => void> {
  try {
    return await stage.take(folder);
  } catch (error) {
    throw error instanceof BlobDamaged ? new InputDamaged(reason, error) : error;
  }
}

function retryRule({ attemptsWithoutProgressMax, retryDelaySeconds }: SupervisorParts['config']): RetryRule {
  return { attemptsWithoutProgressMax, retryDelayMs: retryDelaySeconds * 1000 };
}

interface Membership {
  attempt: number;
  member: GangMember;
}

/**
 * The orders for the ranks of a run on this machine, each with its card. All but the first rank of the run write to folders of their own.
 */
function ordersOf(order: TrainOrder, ranks: readonly number[], { cards }: Slot): TrainOrder[] {
  return ranks.map((rank, index) => {
    if (rank === 0) return order;
    const jobFolder = join(order.jobFolder, 'ranks', String(rank));
    const card = { ...order.device.card, uuid: cards[index] ?? null };
    return { ...order, jobFolder, device: { ...order.device, card }, member: { ...order.member!, rank } };
  });
}

/** If there are several cards, a trainer sees only its own. A single card keeps the operator's setting. */
function environmentOf({ device: { card } }: TrainOrder, { cardCount }: Slots): Record<string, string> {
  const { uuid } = card;
  return uuid === null || cardCount < 2 ? {} : { CUDA_VISIBLE_DEVICES: uuid };
}

async function freeDiskBytes(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder);
  return bavail * bsize;
}
