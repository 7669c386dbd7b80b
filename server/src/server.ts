import type { Logger } from 'pino';
import { openAccess } from './access/access.js';
import { storeOptions } from './backup/backupCommands.js';
import { Certificates } from './certificates.js';
import type { Config } from './config.js';
import { Ends } from './ends.js';
import { machineMemoryBytes } from './machineMemory.js';
import { mpiHostOf, requireMpi } from './trainer/mpirun.js';
import { requireNative } from './trainer/requireNative.js';
import { createMetrics } from './metrics/metrics.js';
import { makeServerParts, type ServerParts } from './serverParts.js';
import { openAdmin, openPorts, type Ground } from './serverPorts.js';
import { Quotas } from './quotas/quotas.js';
import { openStore } from './store/openStore.js';
import { standbyWarning } from './store/standby.js';
import { version } from './version.js';

export interface ServerOptions {
  log: Logger;
  /** The store failed and nothing can be promised any more: the process should end and be started again. */
  onFatal?: (error: unknown) => void;
}

export interface RunningServer {
  /** host:port as bound; for a requested port 0, with the port that was chosen. */
  grpcAddress: string;
  httpAddress: string;
  /** Null if health has no address of its own. */
  healthAddress: string | null;
  /** Process id of a running job's trainer. */
  trainerPid(jobId: string): number | undefined;
  /** Process ids of all ranks of a running job, the trainer first. */
  rankPids(jobId: string): number[];
  /**
   * Ends within config.shutdownSeconds: watches end with SERVER_STOPPING, calls in progress are answered, trainers save a checkpoint and
   * their jobs return to the queue. A second call waits for the first.
   */
  stop(): Promise<void>;
}

/** Share of the shutdown time for calls and trainers, which end in parallel; the rest is for closing. */
const drainShare = 0.8;

/**
 * Starts everything on a data folder and resolves when calls are answered. Throws StoreUnusable, ConfigInvalid if the processor lacks the
 * configured instructions, or the error of an address that cannot be bound; nothing is left running then.
 */
export async function startServer(
  config: Config,
  { log, onFatal = () => {} }: ServerOptions,
): Promise<RunningServer> {
  const ends = new Ends();
  try {
    const ground = await openGround(config, log, ends);
    const parts = await openParts(ground, onFatal, ends);
    const ports = await openPorts(ground, parts, ends);
    await joinServers(ground, parts, ports.grpcAddress);
    await openAdmin(ground, parts, ends);
    await beginWork(parts, ends);
    ports.health.setServing(true);

    const stop = async (): Promise<void> => {
      const drainMs = config.shutdownSeconds * 1000 * drainShare;
      ports.health.setServing(false);
      ground.stopping.abort();
      const { supervisor, preparer, exporter } = parts;
      await Promise.all([
        ports.grpc.drain(drainMs),
        supervisor.stop(drainMs),
        preparer.stop(),
        exporter.stop(),
      ]);
      await ends.endAll();
    };
    let stopped: Promise<void> | undefined;
    return {
      grpcAddress: ports.grpcAddress,
      httpAddress: ports.httpAddress,
      healthAddress: ports.healthAddress,
      trainerPid: (jobId) => parts.supervisor.trainerPid(jobId),
      rankPids: (jobId) => parts.supervisor.rankPids(jobId),
      stop: async () => await (stopped ??= stop()),
    };
  } catch (error) {
    await ends.endAll();
    throw error;
  }
}

/** Opens what all other parts depend on. */
async function openGround(config: Config, log: Logger, ends: Ends): Promise<Ground> {
  const access = await openAccess(config, log);
  ends.add(() => access.close());
  const certificates = await Certificates.open(config, log);
  ends.add(() => certificates?.close());
  const quotas = await Quotas.open(config.quotaFile, log);
  ends.add(() => quotas.close());
  const metrics = createMetrics();
  const store = await openStore(config.dataFolder, {
    ...storeOptions(config),
    onStatement: (seconds) => metrics.storeDuration.observe(seconds),
  });
  ends.add(async () => await store.close());
  const warning = config.databaseUrl === null ? undefined : await standbyWarning(store.db);
  if (warning !== undefined) log.warn(warning);
  return { config, log, access, certificates, quotas, metrics, store, stopping: new AbortController() };
}

/** Makes the parts on the store and loads what earlier runs learned about the devices. No job runs yet. */
async function openParts(
  { config, log, store, metrics, quotas, stopping }: Ground,
  onStoreFailure: (error: unknown) => void,
  ends: Ends,
): Promise<ServerParts> {
  const parts = makeServerParts({
    config,
    log,
    store,
    metrics,
    quotas,
    stopping: stopping.signal,
    onStoreFailure,
  });
  const { tasks, devices, journal } = parts;
  requireNative(config);
  await requireMpi(config);
  parts.confinement.report(log);
  ends.add(async () => await tasks.stop());
  // Every job would fail, so the start fails instead.
  if (config.instructionSet !== 'auto' || config.device === 'cuda' || config.cudaFolder !== null)
    await devices.requireForced(config);
  await devices.restore();
  ends.add(async () => await devices.save({ isLast: true }));
  ends.add(journal.onAppended((job, events) => devices.note(job, events)));
  return parts;
}

/** Enters this server into the table of servers that share the store; from now on its leases are valid. */
async function joinServers(
  { config, store, stopping }: Ground,
  { devices, slots, startTimeMs }: ServerParts,
  address: string,
): Promise<void> {
  await store.leases.start(() => ({
    address,
    version,
    devices: JSON.stringify(devices.lastMeasured),
    memoryBytes: machineMemoryBytes(),
    slots: stopping.signal.aborted ? 0 : config.slots,
    cardSlots: stopping.signal.aborted ? 0 : slots.cardSlotCount,
    mpiHost: mpiHostOf(config),
    startTimeMs,
  }));
}

/** First cleans up after servers that died, then begins anything new. */
async function beginWork(parts: ServerParts, ends: Ends): Promise<void> {
  const { supervisor, preparer, exporter, janitor, folding, webhookSender, trackers, devices } = parts;
  await supervisor.start();
  ends.add(async () => await supervisor.stop(0));
  for (const work of [preparer, exporter, janitor, folding, webhookSender, trackers]) {
    await work.start();
    ends.add(async () => await work.stop());
  }
  // Measured now, while nobody waits for it.
  void devices.list();
}
