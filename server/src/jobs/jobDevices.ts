import { readStoredRunSpec, type DeviceChoice, type RunSpec } from '@relora/engine/plan';
import type { Expression, ExpressionBuilder, ExpressionWrapper, SqlBool } from 'kysely';
import type { Schema } from '../store/schema.js';
import type { JobChange } from './jobChange.js';
import type { ClaimLimits } from './queueOrder.js';

/** What a job runs on, by name. */
export type DeviceName = Exclude<DeviceChoice, 'auto'>;

/** Something jobs can run on, as measured in a child. */
export interface DeviceDescription {
  backend: DeviceName;
  isDefault: boolean;
  model: string;
  instructionSet: string;
  threadCount: number;
  memoryBytes: number;
  /** Floating point operations per second; 0 where it cannot be measured. */
  float32Flops: number;
  bfloat16Flops: number;
  int8Flops: number;
  /** Bytes a second that go to and from memory; 0 where it cannot be measured. */
  memoryBytesPerSecond: number;
  autoPrecision: 'float32' | 'bfloat16';
  /** Of a card; empty elsewhere, as the next. */
  uuid: string;
  /** As 9.0. */
  computeCapability: string;
}

/** What a server can start a job on now. */
export interface FreeDevices {
  free: readonly DeviceName[];
  /** Of processes on the processors: those that are free, and all. Absent: one of each. */
  places?: { free: number; count: number };
  /** What they are, by pinOf: a job that began on something else is left to others. Null where no other server would have it. */
  pins: readonly string[] | null;
  /** What `auto` is for a job; null while that cannot be said. */
  resolve(spec: RunSpec): DeviceName | null;
}

/** Devices of a job as its row has them, in the order in which they are wanted, so that a statement finds what it looks for. */
export function writeDevices({ device, acceptedDevices }: RunSpec): string {
  return `,${[...new Set([device, ...acceptedDevices])].join(',')},`;
}

/** What decides the bits of a run beside its specification: precision and graphs follow from it by fixed tables. */
export function pinOf({ backend, instructionSet }: { backend: string; instructionSet: string }): string {
  return `${backend} ${instructionSet}`.trim();
}

export function readDevices(text: string): DeviceChoice[] {
  return text.split(',').filter((name) => name !== '') as DeviceChoice[];
}

/** How many places a job has to have at once: fewer than it asked for where it resumes and says so. */
export function placesNeeded(
  eb: ExpressionBuilder<Schema, 'jobs'>,
): ExpressionWrapper<Schema, 'jobs', number> {
  return eb.case().when('attempt', '=', 0).then(eb.ref('replicas')).else(eb.ref('replicas_min')).end();
}

/** The condition of a job that may run on one of the devices. */
export function mayRunOn(
  devices: readonly DeviceChoice[],
): (eb: ExpressionBuilder<Schema, 'jobs'>) => ExpressionWrapper<Schema, 'jobs', SqlBool> {
  return (eb) => eb.or(devices.map((device) => eb('devices', 'like', `%,${device},%`)));
}

/** The condition of a job that has not begun anywhere, or on one of these. */
export function mayContinueOn(
  pins: FreeDevices['pins'],
): (eb: ExpressionBuilder<Schema, 'jobs'>) => Expression<SqlBool> {
  return (eb) =>
    pins === null
      ? eb.lit(true)
      : eb.or([eb('pin', 'is', null), ...(pins.length === 0 ? [] : [eb('pin', 'in', [...pins])])]);
}

/**
 * Resolves `auto` for jobs at the head of the queue until one of the first could be claimed: once and for good, so that a job which is
 * interrupted resumes on the same kind of device.
 */
export async function resolveFirst(
  change: JobChange,
  devices: FreeDevices,
  limits: ClaimLimits,
): Promise<void> {
  for (;;) {
    const first = await change.first(devices, limits, ['auto']);
    if (first?.devices !== ',auto,') return;
    const device = devices.resolve(readStoredRunSpec(first.spec));
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
