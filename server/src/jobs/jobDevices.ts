import { readStoredRunSpec, type DeviceChoice, type RunSpec } from '@relora/engine/plan';
import type { ExpressionBuilder, ExpressionWrapper, SqlBool } from 'kysely';
import type { Schema } from '../store/schema.js';
import type { JobChange } from './jobChange.js';
import { runningOfOwner, withinLimits, type ClaimLimits } from './queueOrder.js';

/** What a job runs on, by name. */
export type DeviceName = Exclude<DeviceChoice, 'auto'>;

/** What a server can start a job on now. */
export interface FreeDevices {
  free: readonly DeviceName[];
  /** What `auto` is for a job; null while that cannot be said. */
  resolve(spec: RunSpec): DeviceName | null;
}

/** Devices of a job as its row has them, in the order in which they are wanted, so that a statement finds what it looks for. */
export function writeDevices({ device, acceptedDevices }: RunSpec): string {
  return `,${[device, ...acceptedDevices].join(',')},`;
}

export function readDevices(text: string): DeviceChoice[] {
  return text.split(',').filter((name) => name !== '') as DeviceChoice[];
}

/** The condition of a job that may run on one of the devices. */
export function mayRunOn(
  devices: readonly DeviceChoice[],
): (eb: ExpressionBuilder<Schema, 'jobs'>) => ExpressionWrapper<Schema, 'jobs', SqlBool> {
  return (eb) => eb.or(devices.map((device) => eb('devices', 'like', `%,${device},%`)));
}

/**
 * Resolves `auto` for jobs at the head of the queue until one of the first could be claimed: once and for good, so that a job which is
 * interrupted resumes on the same kind of device.
 */
export async function resolveFirst(
  change: JobChange,
  free: FreeDevices['free'],
  resolve: FreeDevices['resolve'],
  limits: ClaimLimits,
): Promise<void> {
  for (;;) {
    const first = await change.trx
      .selectFrom('jobs')
      .selectAll()
      .where('state', '=', 'queued')
      .where('delete_time_ms', 'is', null)
      .where('not_before_ms', '<=', change.nowMs)
      .where(mayRunOn([...free, 'auto']))
      .where(withinLimits(limits))
      .orderBy('priority', 'desc')
      .orderBy(runningOfOwner)
      .orderBy('create_time_ms')
      .orderBy('id')
      .limit(1)
      .forUpdate()
      .skipLocked()
      .executeTakeFirst();
    if (first?.devices !== ',auto,') return;
    const device = resolve(readStoredRunSpec(first.spec));
    if (device === null) return;
    await change.update(first, { devices: `,${device},` });
  }
}

/** Many rows are rare: that many say enough. */
const explainedMax = 100;

/** Sets the reason of queued jobs that wait for nothing but one of the devices; false when there is none. */
export async function explainWait(
  change: JobChange,
  devices: readonly DeviceName[],
  reason: string,
): Promise<boolean> {
  const waiting = await change.trx
    .selectFrom('jobs')
    .selectAll()
    .where('state', '=', 'queued')
    .where('delete_time_ms', 'is', null)
    .where(
      'devices',
      'in',
      devices.map((device) => `,${device},`),
    )
    .limit(explainedMax)
    .forUpdate()
    .skipLocked()
    .execute();
  for (const row of waiting.filter(({ state_reason: known }) => known !== reason))
    await change.append(row, row.attempt, [], { state_reason: reason, version: row.version + 1 });
  return waiting.length > 0;
}
