import type { Logger } from 'pino';
import type { Access } from './access/access.js';
import { tokenHandlers } from './access/tokenCommands.js';
import { AdminServer } from './admin/adminServer.js';
import { contractMethods, serveApi, serveHealth, serviceNames } from './api/serveApi.js';
import { backupHandlers } from './backup/backupCommands.js';
import type { Certificates } from './certificates.js';
import type { Address, Config } from './config.js';
import type { ServerHealth } from './doctor/doctor.js';
import type { Ends } from './ends.js';
import type { GrpcServer } from './grpc/grpcServer.js';
import { Health } from './grpc/health.js';
import { JobMetrics } from './metrics/jobMetrics.js';
import type { Metrics } from './metrics/metrics.js';
import { ServerMetrics } from './metrics/serverMetrics.js';
import { connectionsWithin } from './openFiles.js';
import type { Quotas } from './quotas/quotas.js';
import { readReadiness } from './readiness.js';
import type { ServerParts } from './serverParts.js';
import type { Store } from './store/openStore.js';
import { version } from './version.js';
import { HttpServer } from './web/httpServer.js';
import { hasPage, pageRoute } from './web/pageRoute.js';

/** What a server is built on: access, encryption, metrics and the store. */
export interface Ground {
  config: Config;
  log: Logger;
  access: Access;
  certificates: Certificates | undefined;
  quotas: Quotas;
  metrics: Metrics;
  store: Store;
  stopping: AbortController;
}

export interface Ports {
  grpc: GrpcServer;
  health: Health;
  /** host:port as bound. */
  grpcAddress: string;
  httpAddress: string;
  /** Null if health has no address of its own. */
  healthAddress: string | null;
}

/** Time for notifying waiting probes that the server stops. */
const probesMs = 1000;

/** Both ports answer when this resolves; health reports "serving" later. */
export async function openPorts(ground: Ground, parts: ServerParts, ends: Ends): Promise<Ports> {
  const { config, log, access, certificates, stopping } = ground;
  const { authenticate } = access;
  const health = new Health(serviceNames, stopping.signal);
  const connectionsMax = connectionsWithin(config);
  if (connectionsMax < config.connectionsMax)
    log.warn({ connectionsMax }, 'The limit of open files allows fewer connections than the settings');
  const grpc = serveApi(parts, health, { connectionsMax, authenticate, certificates });
  const http = await listenHttp(ground, grpc, followMetrics(ground, parts, ends));
  ends.add(async () => await http.close());
  const grpcPort = await grpc.listen(config.grpcAddress);
  ends.add(() => grpc.close());
  const { healthAddress } = config;
  let healthPort = 0;
  if (healthAddress !== null) {
    const probes = serveHealth(parts, health);
    healthPort = await probes.listen(healthAddress);
    // Only after all work has ended: until then it reports that the server stops.
    ends.add(async () => await probes.drain(probesMs));
  }
  return {
    grpc,
    health,
    grpcAddress: hostPort(config.grpcAddress, grpcPort),
    httpAddress: hostPort(config.httpAddress, http.port),
    healthAddress: healthAddress === null ? null : hostPort(healthAddress, healthPort),
  };
}

/** Metrics of jobs and of the server, updated from here on. */
function followMetrics({ config, metrics }: Ground, parts: ServerParts, ends: Ends): ServerMetrics {
  const { journal, supervisor, store, webhooks, startTimeMs } = parts;
  const jobMetrics = new JobMetrics(metrics);
  ends.add(jobMetrics.follow(journal, supervisor));
  const serverMetrics = new ServerMetrics({
    metrics,
    jobMetrics,
    store,
    webhooks,
    supervisor,
    config,
    version,
    startTimeMs,
  });
  ends.add(() => serverMetrics.stop());
  return serverMetrics;
}

async function listenHttp(
  { config, log, access: { authenticate }, certificates, store, stopping }: Ground,
  grpc: GrpcServer,
  serverMetrics: ServerMetrics,
): Promise<HttpServer> {
  const page = {
    methods: contractMethods(),
    call: grpc.call.bind(grpc),
    authenticate,
    bodyBytesMax: config.messageBytesMax,
    readerSilenceSeconds: config.readerSilenceSeconds,
  };
  const web = {
    authenticate,
    certificates,
    withoutToken: config.withoutToken,
    render: async () => await serverMetrics.render(),
    contentType: serverMetrics.contentType,
    readiness: async () => await readReadiness(store.db, config, stopping.signal),
    page: hasPage(config) ? pageRoute(page, config.pageHosts) : undefined,
    log,
  };
  return await HttpServer.listen(config.httpAddress, web, config);
}

/** Opens the socket through which commands on this machine ask the running server; see askServer.ts. */
export async function openAdmin(
  ground: Ground,
  { devices, audit, confinement }: ServerParts,
  ends: Ends,
): Promise<void> {
  const { config, log, access, store, stopping } = ground;
  const { tokens } = access;
  const commands = {
    'doctor/health': async (): Promise<ServerHealth> => {
      const found = await devices.list();
      const readiness = await readReadiness(store.db, config, stopping.signal);
      return {
        native: devices.nativeCode(),
        devices: [...found],
        problems: [...devices.problems()],
        libraries: [...devices.libraries()],
        nccl: devices.nccl(),
        problem: readiness.ready ? null : readiness.problem,
        unconfinedCards: confinement.unconfinedCards,
      };
    },
    health: async () => 'alive',
    ...(tokens === undefined ? {} : tokenHandlers(config.tokenFile, tokens, audit)),
    ...backupHandlers(config, store),
  };
  const admin = await AdminServer.listen(config.dataFolder, commands, log);
  ends.add(async () => await admin.close());
}

function hostPort({ host }: Address, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}
