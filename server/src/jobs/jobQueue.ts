import {
  readDatasetNames,
  replicasNeeded,
  readStoredRunSpec,
  replicasWithin,
  Schedule,
  type RunSpec,
  type RunUpdate,
} from '@relora/engine/plan';
import type { Leases } from '../store/leases.js';
import { releaseRequest, takeRequest } from '../store/requests.js';
import { timedId } from '../store/timedId.js';
import type { Job, JobOrigin, JobProgress } from './job.js';
import type { JobChange } from './jobChange.js';
import type { JobJournal } from './jobJournal.js';
import {
  explainWait,
  isOnCards,
  placesOn,
  readDevices,
  resolveFirst,
  writeDevices,
  type DeviceName,
  type FreeDevices,
  type Places,
} from './jobDevices.js';
import { toJob } from './jobRow.js';
import { defaultTenant, idIn, nameOf, withId } from '../store/tenantIds.js';
import { queuePositions, type ClaimLimits } from './queueOrder.js';
import type { JobRow, ServerRow } from '../store/schema.js';
import { insertUpdates } from './jobUpdates.js';
import {
  alikeServers,
  fixShares,
  isTakenUp,
  needed,
  offeredPlaces,
  offerPlaces,
  placesOf,
  shareOut,
  type PlaceKind,
} from './gangPlaces.js';
import { beginAttempt } from '../usage/attemptUse.js';
import { Quotas, type ClosedTenants } from '../quotas/quotas.js';

export interface NewJob {
  /** Id in the store, see tenantIds.ts; null: the queue makes one for the tenant that sorts by time. */
  jobId: string | null;
  /** Default: `default`. */
  tenant?: string;
  displayName: string;
  labels: Record<string, string>;
  spec: RunSpec;
  /** The checkpoint that it begins at; null for a job that begins at step 0. */
  origin: JobOrigin | null;
  /** Updates of its run, each with its step; absent for none. */
  updates?: readonly RunUpdate[];
  /** What is allowed but probably not intended; the first events of the journal. */
  warnings: readonly { reason: string; message: string }[];
  /** A repeated submit with the same id returns the first job. */
  requestId: string | null;
  /** SHA-256 of everything that was asked for (as the client sent it): the same request id with another digest is a conflict. */
  requestDigest: string;
}

/**
 * `conflict`: the request id was used for something else. `taken`: the job id exists. `full`: no place in the queue. GoneJob: the request
 * was served, but its job has been purged since.
 */
export type Submission =
  { job: Job; isRepeated: boolean } | GoneJob | 'full' | 'taken' | 'conflict' | MissingNeed;

/**
 * Something that the job needs was deleted while it was checked: its data set, the job it begins at, the checkpoint that it begins at (of
 * whose job checkpoints of other steps are left), or its weights.
 */
export type MissingNeed =
  { deletedDatasetId: string } | { leftSteps: number[] } | 'originDeleted' | 'weightsDeleted';

export interface GoneJob {
  goneJobId: string;
}

/**
 * A job to start on several servers, with the number of its processes here; or the job that places are offered for, null for none; or
 * `takenUp`: another server accepted the offer.
 */
export type Gathered =
  | { job: Job; device: DeviceName; count: number }
  | { offered: string; on: PlaceKind }
  | { offered: null }
  | 'takenUp';

const noneClosed: ClosedTenants = { tenants: [], usedUp: [], lookAgainMs: null };

/** Jobs that wait for a slot: rows of the jobs table in the state queued, highest priority first, then oldest first. */
export class JobQueue {
  constructor(
    private readonly journal: JobJournal,
    private readonly leases: Leases,
    private readonly options: { jobsMax: number; ownerRunningMax?: number },
    private readonly quotas = new Quotas(),
  ) {}

  /** The job that a request created earlier, even if its data set or the limits have changed since; undefined for a new request. */
  async findRepeated(
    tenant: string,
    requestId: string,
    requestDigest: string,
  ): Promise<Job | GoneJob | undefined> {
    return await this.journal.change(async (change) => {
      const first = await change.trx
        .selectFrom('requests')
        .select(['digest', 'subject'])
        .where('tenant', '=', tenant)
        .where('request_id', '=', requestId)
        .executeTakeFirst();
      if (first === undefined || first.digest !== requestDigest) return undefined;
      return await jobOf(change, first.subject);
    });
  }

  /**
   * Stores a job and queues it; when this resolves, the job survives any crash. A repeated request does not need a place. Throws
   * QUOTA_EXCEEDED.
   */
  async submit(newJob: NewJob): Promise<Submission> {
    return await this.journal.change(async (change): Promise<Submission> => {
      const { nowMs } = change;
      const { tenant = defaultTenant, requestId } = newJob;
      const id = newJob.jobId ?? idIn(tenant, timedId('job', nowMs));
      const request = requestId && { requestId, digest: newJob.requestDigest, subject: `jobs/${id}` };
      if (request) {
        const first = await takeRequest(change.trx, request, nowMs);
        if (first === 'conflict') return first;
        if (first !== 'new') {
          const job = await jobOf(change, first.subject);
          return 'goneJobId' in job ? job : { job, isRepeated: true };
        }
      }
      const refusal = (await this.refusalOf(change, id)) ?? (await missingNeed(change, newJob));
      if (refusal !== undefined) {
        if (request) await releaseRequest(change.trx, request);
        return refusal;
      }
      await this.quotas.requireQueuePlace(change.trx, tenant);
      await this.quotas.requireBytes(change.trx, tenant, 0);

      const values = {
        id,
        tenant,
        name: nameOf(id),
        display_name: newJob.displayName,
        labels: JSON.stringify(newJob.labels),
        spec: JSON.stringify(newJob.spec),
        state: 'queued',
        state_reason: 'Waits for a free slot',
        failure: null,
        progress: JSON.stringify(newProgress(newJob)),
        attempt: 0,
        attempts_without_progress: 0,
        not_before_ms: 0,
        stop_request: null,
        last_sequence: 0,
        version: 1,
        priority: newJob.spec.priority,
        create_time_ms: nowMs,
        update_time_ms: nowMs,
        start_time_ms: null,
        end_time_ms: null,
        execution: null,
        origin: newJob.origin === null ? null : JSON.stringify(newJob.origin),
        base_weights_name: weightsOf(newJob),
        origin_job_id: newJob.origin?.jobId ?? null,
        update_number: newJob.updates?.at(-1)?.number ?? 0,
        devices: writeDevices(newJob.spec),
        replicas: newJob.spec.replicas,
        replicas_min: replicasNeeded(newJob.spec, true),
      } as const;
      const queued = await change.insert(values, newJob.labels);
      await change.trx
        .insertInto('job_datasets')
        .values(datasetIdsOf(newJob).map((dataset_id) => ({ job_id: id, dataset_id })))
        .execute();
      await insertUpdates(change.trx, id, newJob.updates ?? [], nowMs);
      const row = await change.append(
        queued,
        0,
        newJob.warnings.map((warning) => ({ timeMs: nowMs, body: { kind: 'warning', ...warning } })),
      );
      return { job: toJob(row, await positionOf(change, id)), isRepeated: false };
    });
  }

  /**
   * Takes the first job that may start on a free device: when this resolves, the job is durably `starting` with a new attempt. If there is
   * none, returns when to look again, because a job waits after a crash or for device hours; null if only an event can change something.
   */
  async claimNext(
    devices: FreeDevices,
  ): Promise<{ job: Job; device: DeviceName; processes: number } | { notBeforeMs: number | null }> {
    return await this.journal.change(async (change) => {
      if ((this.options.ownerRunningMax ?? 0) > 0 || this.quotas.mayClose) await change.takeTurn();
      const { limits, closed } = await this.limitsOf(change);
      await resolveFirst(change, devices, limits);
      const claimed = await this.claim(change, devices, limits);
      if (claimed !== undefined) {
        const device = deviceOf(claimed, devices);
        const spec = readStoredRunSpec(claimed.spec);
        const { free } = placesOn(device, devices, spec.precision);
        return await this.begin(change, claimed, device, replicasWithin(spec, free));
      }
      const { first } = await change.trx
        .selectFrom('jobs')
        .select(({ fn }) => fn.min<number | null>('not_before_ms').as('first'))
        .where('state', '=', 'queued')
        .where('delete_time_ms', 'is', null)
        .where('not_before_ms', '>', change.nowMs) // the others wait for a slot
        .executeTakeFirstOrThrow();
      const times = [first, closed.lookAgainMs].filter((time) => time !== null);
      return { notBeforeMs: times.length === 0 ? null : Math.min(...times) };
    });
  }

  /**
   * Handles a first job that needs more places at once than any one server has, if servers that compute identically have enough together:
   * offers the free places of this server, and takes the job once the offers are enough. Withdraws any other offer.
   * @param devices with the places that are already offered among the free ones
   * @param offeredBefore the job that they are offered for
   */
  async gather(devices: FreeDevices, offeredBefore: string | null): Promise<Gathered> {
    const own = this.leases.serverId;
    const living = (await this.leases.servers()) ?? [];
    return await this.journal.change(async (change): Promise<Gathered> => {
      // One server at a time: two that offer the last places at the same time would both see too few.
      await change.takeTurn();
      if (offeredBefore !== null && (await isTakenUp(change.trx, own, offeredBefore))) return 'takenUp';
      const { limits } = await this.limitsOf(change);
      for (const on of ['processors', 'cards'] as const) {
        const servers = alikeServers(living, own, on);
        const gathered = await this.gatherOn(on, change, devices, limits, servers);
        if (gathered !== null) return gathered;
      }
      await offerPlaces(change.trx, own, null, 0);
      return { offered: null };
    });
  }

  /** Null if no first job waits for places of this kind on several servers, or if this server has none to offer. */
  private async gatherOn(
    on: PlaceKind,
    change: JobChange,
    devices: FreeDevices,
    limits: ClaimLimits,
    servers: readonly ServerRow[],
  ): Promise<Exclude<Gathered, 'takenUp'> | null> {
    const own = this.leases.serverId;
    const counts = servers.map((server) => placesOf(server, on));
    const [count, largest] = [counts.reduce((sum, more) => sum + more, 0), Math.max(0, ...counts)];
    const free = devices.places?.[on].free ?? 0;
    if (free === 0 || count <= largest) return null;
    const wide = onlyOn(on, devices, { free, count });
    await resolveFirst(change, wide, limits);
    const first = await change.first(wide, limits);
    if (first === undefined || needed(first) <= largest) return null;
    await offerPlaces(change.trx, own, first.id, free);
    const shares = await shareOut(change.trx, first, own, servers);
    if (shares === null) {
      const offered = await offeredPlaces(change.trx, first.id);
      const reason = waitsForPlaces(first, offered, on === 'cards' ? 'cards' : 'slots');
      if (first.state_reason !== reason)
        await change.append(first, first.attempt, [], { state_reason: reason, version: first.version + 1 });
      return { offered: first.id, on };
    }
    const claimed = await change.claimRow(first, 'Trainers are being started', this.leases);
    const begun = await this.begin(change, claimed, deviceOf(claimed, wide), shares[0]!.size);
    await fixShares(change.trx, claimed.id, claimed.attempt, begun.device, shares);
    return { ...begun, count: shares[0]!.count };
  }

  private async limitsOf(change: JobChange): Promise<{ limits: ClaimLimits; closed: ClosedTenants }> {
    const { ownerRunningMax = 0 } = this.options;
    const { mayClose } = this.quotas;
    const closed = mayClose ? await this.quotas.closedTenants(change.trx, change.nowMs) : noneClosed;
    return { closed, limits: { ownerRunningMax, closedTenants: closed.tenants } };
  }

  private async begin(
    change: JobChange,
    claimed: JobRow,
    device: DeviceName,
    processes: number,
  ): Promise<{ job: Job; device: DeviceName; processes: number }> {
    await beginAttempt(change.trx, claimed, { device, processes }, change.nowMs);
    return { job: toJob(claimed), device, processes };
  }

  /**
   * Claims the next job. If that waits for several places at once, those of its kind are kept free for it: places on cards go to the jobs
   * behind one that waits for processors, and the other way round.
   */
  private async claim(
    change: JobChange,
    devices: FreeDevices,
    limits: ClaimLimits,
  ): Promise<JobRow | undefined> {
    const claimed = await change.claim('A trainer is being started', devices, this.leases, limits);
    const first = claimed === undefined ? await change.first(devices, limits) : undefined;
    if (first === undefined) return claimed;
    const device = deviceOf(first, devices);
    const reason = waitsForPlaces(
      first,
      placesOn(device, devices, readStoredRunSpec(first.spec).precision).free,
      isOnCards(device) ? 'cards' : 'slots',
    );
    if (first.state_reason !== reason)
      await change.append(first, first.attempt, [], { state_reason: reason, version: first.version + 1 });
    const others = devices.free.filter((name) => isOnCards(name) !== isOnCards(device));
    return others.length === 0 ? undefined : await this.claim(change, { ...devices, free: others }, limits);
  }

  /** Stores why jobs wait that can only run on one of these devices; false if there are none. */
  async explainWait(
    devices: readonly DeviceName[],
    reason: string,
    which?: { isOfFp8: boolean },
  ): Promise<boolean> {
    return await this.journal.change((change) => explainWait(change, devices, reason, which));
  }

  private async refusalOf(change: JobChange, id: string): Promise<'taken' | 'full' | undefined> {
    const { trx } = change;
    // One at a time: two transactions that count at the same time would both take the last place.
    await trx.selectFrom('store_info').select('key').where('key', '=', 'incarnation').forUpdate().execute();
    if ((await change.find(id)) !== undefined) return 'taken';
    const { count } = await trx
      .selectFrom('jobs')
      .select(({ fn }) => fn.countAll<number>().as('count'))
      .where('state', '=', 'queued')
      .executeTakeFirstOrThrow();
    return count >= this.options.jobsMax ? 'full' : undefined;
  }
}

/** Devices of one kind, with these places. */
function onlyOn(on: PlaceKind, devices: FreeDevices, places: Places): FreeDevices {
  const none: Places = { free: 0, count: 0 };
  const isCards = on === 'cards';
  return {
    ...devices,
    free: devices.free.filter((name) => isOnCards(name) === isCards),
    places: {
      processors: isCards ? none : places,
      cards: isCards ? places : none,
      fp8Cards: isCards && devices.places!.fp8Cards.free > 0 ? places : none,
    },
  };
}

/** The first of a job's devices that is free. */
function deviceOf({ devices }: JobRow, { free }: FreeDevices): DeviceName {
  return readDevices(devices).find((name) => free.some((other) => other === name)) as DeviceName;
}

function waitsForPlaces({ attempt, replicas, replicas_min }: JobRow, free: number, of = 'slots'): string {
  const needed = attempt === 0 ? replicas : replicas_min;
  return `Waits for ${needed} ${of} at once, of which ${free} ${free === 1 ? 'is' : 'are'} free and kept for it`;
}

/** Locks what the job needs, so that it is not deleted before the job is stored. */
async function missingNeed(change: JobChange, newJob: NewJob): Promise<MissingNeed | undefined> {
  const { trx } = change;
  const { origin } = newJob;
  const datasets = await trx
    .selectFrom('datasets')
    .select(['id', 'delete_time_ms'])
    .where('id', 'in', datasetIdsOf(newJob))
    .orderBy('id') // always in the same order, so that there is no deadlock
    .forUpdate()
    .execute();
  const deleted = datasets.find(({ delete_time_ms }) => delete_time_ms !== null);
  if (deleted !== undefined) return { deletedDatasetId: deleted.id };
  if (origin !== null) {
    if (!(await isThere(change, origin.jobId))) return 'originDeleted';
    // The lock on its job also keeps the checkpoint from being removed.
    const left = await trx
      .selectFrom('checkpoints')
      .select(['step', 'folder'])
      .where('job_id', '=', origin.jobId)
      .where('corrupt', '=', 0)
      .orderBy('step', 'desc')
      .execute();
    if (!left.some(({ folder }) => folder === origin.folder))
      return { leftSteps: left.map(({ step }) => step) };
  }
  const [kind, id, , artifactId] = (weightsOf(newJob) ?? '').split('/');
  if (kind === 'weights') {
    const weights = trx.selectFrom('weights').select('id').where('id', '=', id!).forUpdate();
    if ((await weights.executeTakeFirst()) === undefined) return 'weightsDeleted';
  } else if (kind === 'jobs') {
    if (!(await isThere(change, id!))) return 'weightsDeleted';
    const artifact = trx
      .selectFrom('artifacts')
      .select('id')
      .where('job_id', '=', id!)
      .where('id', '=', artifactId!)
      .forUpdate();
    if ((await artifact.executeTakeFirst()) === undefined) return 'weightsDeleted';
  }
  return undefined;
}

function datasetIdsOf({ tenant = defaultTenant, spec }: NewJob): string[] {
  return readDatasetNames(spec).map((name) => idIn(tenant, name.replace(/^datasets\//, '')));
}

function weightsOf({ tenant = defaultTenant, spec }: NewJob): string | null {
  return spec.baseWeightsName === null ? null : withId(tenant, spec.baseWeightsName);
}

async function isThere(change: JobChange, jobId: string): Promise<boolean> {
  const row = await change.find(jobId);
  return row !== undefined && row.delete_time_ms === null;
}

/** The job that a request created. */
async function jobOf(change: JobChange, subject: string): Promise<Job | GoneJob> {
  const jobId = subject.replace(/^jobs\//, '');
  const row = await change.find(jobId);
  return row === undefined ? { goneJobId: jobId } : toJob(row, await positionOf(change, jobId));
}

/** Progress before the checkpoint that a job begins at is included. */
function newProgress({ spec, origin }: NewJob): JobProgress {
  const schedule = new Schedule(spec);
  const step = origin?.step ?? 0;
  return {
    step,
    stepCount: schedule.stepCount,
    phase: null,
    restartCount: schedule.restartCountUntil(step),
    trainedTokens: step * spec.batch.sequenceCount * spec.batch.sequenceLength,
    loss: null,
    evaluationLoss: null,
    tokensPerSecond: null,
    remainingSeconds: null,
    checkpointStep: origin === null ? null : step,
  };
}

async function positionOf({ trx }: JobChange, jobId: string): Promise<number> {
  return (await queuePositions(trx)).get(jobId) ?? 0;
}
