import type { Logger } from 'pino';
import { openAccess } from './access/access.js';
import { tokenHandlers } from './access/tokenCommands.js';
import { AdminServer } from './admin/adminServer.js';
import { contractMethods, serveApi, serviceNames } from './api/serveApi.js';
import { Certificates } from './certificates.js';
import { backupHandlers, storeOptions } from './backup/backupCommands.js';
import type { Address, Config } from './config.js';
import { Health } from './grpc/health.js';
import { machineMemoryBytes } from './machineMemory.js';
import { JobMetrics } from './metrics/jobMetrics.js';
import { createMetrics } from './metrics/metrics.js';
import { ServerMetrics } from './metrics/serverMetrics.js';
import { connectionsWithin } from './openFiles.js';
import type { ServerHealth } from './doctor/doctor.js';
import { readReadiness } from './readiness.js';
import { makeServerParts } from './serverParts.js';
import { openStore } from './store/openStore.js';
import { version } from './version.js';
import { HttpServer } from './web/httpServer.js';
import { hasPage, pageRoute } from './web/pageRoute.js';

export interface ServerOptions {
  log: Logger;
  /** The store failed and nothing can be promised any more: the process should end and be started again. */
  onFatal?: (error: unknown) => void;
}

export interface RunningServer {
  /** host:port as bound: where port 0 was asked for, the one that was free. */
  grpcAddress: string;
  httpAddress: string;
  /** Process of a running job's trainer. */
  trainerPid(jobId: string): number | undefined;
  /**
   * Ends within config.shutdownSeconds: watches end with SERVER_STOPPING, calls under way are answered, trainers save a
   * checkpoint and their jobs are queued. A second call waits for the first.
   */
  stop(): Promise<void>;
}

/** Share of the shutdown time that calls and trainers have, side by side; the rest is for closing. */
const drainShare = 0.8;

/**
 * Starts everything on a data folder and resolves when calls are answered. Throws StoreUnusable, ConfigInvalid for
 * instructions that the processor lacks, or the error of an address that cannot be had; nothing is left running then.
 */
export async function startServer(config: Config, { log, onFatal }: ServerOptions): Promise<RunningServer> {
  // How to end what was started, in the order of the starts.
  const ends: (() => Promise<void> | void)[] = [];
  const endAll = async (): Promise<void> => {
    for (const end of ends.splice(0).reverse()) await end();
  };
  try {
    const access = await openAccess(config, log);
    ends.push(() => access.close());
    const { authenticate } = access;
    const certificates = await Certificates.open(config, log);
    ends.push(() => certificates?.close());
    const metrics = createMetrics();
    const jobMetrics = new JobMetrics(metrics);
    const store = await openStore(config.dataFolder, {
      ...storeOptions(config),
      onStatement: (seconds) => metrics.storeDuration.observe(seconds),
    });
    ends.push(async () => await store.close());

    const stopping = new AbortController();
    const { signal } = stopping;
    const onStoreFailure = onFatal ?? (() => {});
    const parts = makeServerParts({ config, log, store, metrics, stopping: signal, onStoreFailure });
    ends.push(async () => await parts.tasks.stop());
    // Every job would fail by it: better the start does.
    if (config.instructionSet !== 'auto' || config.device === 'cuda' || config.cudaFolder !== null)
      await parts.devices.requireForced(config);

    await parts.devices.restore();
    ends.push(async () => await parts.devices.save({ isLast: true }));

    const { supervisor, preparer, exporter, janitor, folding } = parts;
    ends.push(jobMetrics.follow(parts.journal, supervisor));
    ends.push(parts.journal.onAppended((job, events) => parts.devices.note(job, events)));
    const serverMetrics = new ServerMetrics({
      metrics,
      jobMetrics,
      store: parts.store,
      supervisor,
      config,
      version,
      startTimeMs: parts.startTimeMs,
    });
    ends.push(() => serverMetrics.stop());
    const health = new Health(serviceNames, signal);
    const connectionsMax = connectionsWithin(config);
    if (connectionsMax < config.connectionsMax)
      log.warn({ connectionsMax }, 'The limit of open files allows fewer connections than the settings');
    const grpc = serveApi(parts, health, { connectionsMax, authenticate, certificates });
    const web = {
      authenticate,
      certificates,
      withoutToken: config.withoutToken,
      render: async () => await serverMetrics.render(),
      contentType: serverMetrics.contentType,
      readiness: async () => await readReadiness(store.db, config, signal),
      page: hasPage(config)
        ? pageRoute(
            {
              methods: contractMethods(),
              call: (path, request, context) => grpc.call(path, request, context),
              authenticate,
              bodyBytesMax: config.messageBytesMax,
            },
            config.pageHosts,
          )
        : undefined,
      log,
    };
    const http = await HttpServer.listen(config.httpAddress, web, config);
    ends.push(async () => await http.close());

    const grpcPort = await grpc.listen(config.grpcAddress);
    ends.push(() => grpc.close());

    await store.leases.start(() => ({
      address: hostPort(config.grpcAddress, grpcPort),
      version,
      devices: JSON.stringify(parts.devices.lastMeasured),
      memoryBytes: machineMemoryBytes(),
      slots: signal.aborted ? 0 : config.slots,
      startTimeMs: parts.startTimeMs,
    }));
    const { tokens } = access;
    const commands = {
      'doctor/health': async (): Promise<ServerHealth> => {
        const [devices, readiness] = [
          await parts.devices.list(),
          await readReadiness(store.db, config, signal),
        ];
        const problem = readiness.ready ? null : readiness.problem;
        return {
          devices: [...devices],
          problems: [...parts.devices.problems()],
          libraries: [...parts.devices.libraries()],
          problem,
        };
      },
      health: async () => 'alive',
      ...(tokens === undefined ? {} : tokenHandlers(config.tokenFile, tokens, parts.audit)),
      ...backupHandlers(config, store),
    };
    const admin = await AdminServer.listen(config.dataFolder, commands, log);
    ends.push(async () => await admin.close());

    // First what a dead server left is put right, then anything new is begun.
    await supervisor.start();
    ends.push(async () => await supervisor.stop(0));
    preparer.start();
    ends.push(async () => await preparer.stop());
    exporter.start();
    ends.push(async () => await exporter.stop());
    janitor.start();
    ends.push(async () => await janitor.stop());
    folding.start();
    ends.push(async () => await folding.stop());
    // Measured now, while nobody waits for it.
    void parts.devices.list();
    health.setServing(true);

    const stop = async (): Promise<void> => {
      const drainMs = config.shutdownSeconds * 1000 * drainShare;
      health.setServing(false);
      stopping.abort();
      await Promise.all([grpc.drain(drainMs), supervisor.stop(drainMs), preparer.stop(), exporter.stop()]);
      await endAll();
    };
    let stopped: Promise<void> | undefined;
    return {
      grpcAddress: hostPort(config.grpcAddress, grpcPort),
      httpAddress: hostPort(config.httpAddress, http.port),
      trainerPid: (jobId) => supervisor.trainerPid(jobId),
      stop: async () => await (stopped ??= stop()),
    };
  } catch (error) {
    await endAll();
    throw error;
  }
}

function hostPort({ host }: Address, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}
