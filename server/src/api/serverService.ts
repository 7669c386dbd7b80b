import { countParameters, presets } from '@relora/engine/plan';
import type { ServerServiceDefinition } from '@relora/sdk/contract';
import { settings, type Config } from '../config.js';
import type { Implementation } from '../grpc/service.js';
import { enums } from './enums.js';
import type { AuditCursor } from '../audit/auditLog.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import { toDate, toModelConfig } from './toProto.js';
import type { ApiParts } from './parts.js';
import { recipes } from './recipes.js';
import { scrub } from './scrub.js';
import { getQuota } from './quota.js';
import { getUsage } from './usage.js';
import type { DiskUse } from '../retention/diskUse.js';
import { tenantOf, withName } from '../store/tenantIds.js';

/** Describes the server and what it can do. */
export function serverService(parts: ApiParts): Implementation<typeof ServerServiceDefinition> {
  const { config, store, devices, slots, confinement, disk, version, startTimeMs, audit, pageTokens } = parts;
  return {
    async getServerInfo() {
      const counts = await store.countByState();
      const found = await devices.list();
      const hasCards = found.some(({ backend }) => backend === 'cuda');
      const { means, unconfinedCards } = confinement;
      return {
        version,
        startTime: new Date(startTimeMs),
        slotCount: slots.count,
        runningJobCount: counts.starting + counts.running,
        queuedJobCount: counts.queued,
        devices: found.map((device) => ({
          ...device,
          autoPrecision: enums.Precision.to[device.autoPrecision],
          slotCount: device.backend === 'cuda' ? config.gpuSlots : config.slots,
        })),
        sandbox:
          hasCards && unconfinedCards !== null
            ? `${means}; not on a card: ${unconfinedCards}`
            : (means ?? ''),
        limits: limitsOf(config),
        recipes: Object.entries(recipes).map(([name, { summary }]) => ({ name, summary })),
        presets: Object.entries(presets).map(([name, shape]) => ({
          name,
          // Without a vocabulary only the linear layers and norms remain.
          config: { ...toModelConfig({ ...shape, vocabSize: 0 }), vocabSize: undefined },
          bodyParameterCount: countParameters({
            kind: 'fullRank',
            adapter: null,
            model: { ...shape, vocabSize: 0 },
          }).model,
        })),
      };
    },

    async getDiskUse(request, { caller }) {
      const checks = new FieldChecks();
      const entryCount = checks.integer('entry_count', request.entryCount || undefined, 20, 1, 500);
      checks.throwIfWrong();
      const [all, freeBytes] = await Promise.all([disk.read(), disk.freeBytes()]);
      const use = caller.role === 'operator' ? all : ofTenant(all, caller.tenant);
      const entries = use.entries.slice(0, entryCount).map(({ name, bytes, purgeTimeMs }) => ({
        name,
        bytes,
        purgeTime: toDate(purgeTimeMs),
      }));
      return { ...use, freeBytes, entries };
    },

    getQuota: (_, { caller }) => getQuota(parts, caller),

    getUsage: (request, { caller }) => getUsage(parts, request, caller),

    async listAuditEntries(request) {
      const checks = new FieldChecks();
      const entriesMax = parsePageSize(checks, request.pageSize);
      checks.throwIfWrong();
      const { tenant, caller } = request;
      const same = ['audit', tenant, caller];
      const after = pageTokens.read<AuditCursor>(same, request.pageToken);
      const { entries, next } = await audit.list({ after, entriesMax, tenant, caller });
      return {
        entries: entries.map(({ time_ms, request_id, ...entry }) => ({
          ...entry,
          time: new Date(time_ms),
          requestId: request_id,
        })),
        nextPageToken: pageTokens.write(same, next),
      };
    },

    scrub: (request, context) => scrub(parts, request, context),
  };
}

/** The disk use of one tenant, under its own names, without the rest. */
function ofTenant(use: DiskUse, tenant: string): DiskUse {
  const entries = use.entries
    .filter(({ name }) => tenantOf(name.split('/')[1] ?? '') === tenant)
    .map((entry) => ({ ...entry, name: withName(entry.name) }));
  const sum = (kind: string): number =>
    entries.reduce((total, { name, bytes }) => total + (name.startsWith(`${kind}/`) ? bytes : 0), 0);
  return {
    jobBytes: sum('jobs'),
    datasetBytes: sum('datasets'),
    weightsBytes: sum('weights'),
    storeBytes: 0,
    deletedBytes: entries.reduce(
      (total, { bytes, purgeTimeMs }) => total + (purgeTimeMs === null ? 0 : bytes),
      0,
    ),
    entries,
  };
}

/** Settings that limit what clients may request, by variable. */
function limitsOf(config: Config): Record<string, string> {
  const names = Object.keys(settings) as (keyof typeof settings)[];
  const limits = names.filter(
    (name) => /Max$/.test(name) || name === 'heartbeatSeconds' || name === 'freeDiskBytesMin',
  );
  return Object.fromEntries(limits.map((name) => [settings[name].variable, String(config[name])]));
}
