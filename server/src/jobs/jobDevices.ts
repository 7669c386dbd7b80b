import { readStoredRunSpec, type DeviceChoice, type Precision, type RunSpec } from '@relora/engine/plan';
import type { Expression, ExpressionBuilder, ExpressionWrapper, SqlBool } from 'kysely';
import type { Schema } from '../store/schema.js';
import type { JobChange } from './jobChange.js';
import type { ClaimLimits } from './queueOrder.js';

/** The names of what a job can run on. */
export type DeviceName = Exclude<DeviceChoice, 'auto'>;

/** A device that jobs can run on, as measured in a child. */
export interface DeviceDescription {
  backend: DeviceName;
  isDefault: boolean;
  model: string;
  instructionSet: string;
  threadCount: number;
  memoryBytes: number;
  /** Floating point operations per second; 0 if unknown. */
  float32Flops: number;
  bfloat16Flops: number;
  int8Flops: number;
  /** Memory bandwidth in bytes per second; 0 if unknown. */
  memoryBytesPerSecond: number;
  autoPrecision: 'float32' | 'bfloat16';
  /** `uuid` and `computeCapability` are empty unless it is a card. */
  uuid: string;
  /** For example 9.0. */
  computeCapability: string;
}

/** Places for the processes of one job: those that are free, and all. */
export interface Places {
  free: number;
  count: number;
}

/** What a server can start a job on now. */
export interface FreeDevices {
  free: readonly DeviceName[];
  /**
   * A process takes a slot of the processors, or a card on which the job has no other. `fp8Cards` are the cards that serve a base in FP8.
   * Absent: one place of each kind.
   */
  places?: { processors: Places; cards: Places; fp8Cards: Places };
  /**
   * The pins (see pinOf) of its devices: a job that began on another pin is left to other servers. Null if no other server could take it.
   */
  pins: readonly string[] | null;
  /** What `auto` means for a job; null while that is unknown. */
  resolve(spec: RunSpec): DeviceName | null;
}

/** Devices of a job in its row, in order of preference, as text that a statement can search. */
export function writeDevices({ device, acceptedDevices }: RunSpec): string {
  return `,${[...new Set([device, ...acceptedDevices])].join(',')},`;
}

/** What determines the bits of a run in addition to its specification: precision and graphs follow from it by fixed tables. */
export function pinOf({ backend, instructionSet }: { backend: string; instructionSet: string }): string {
  return `${backend} ${instructionSet}`.trim();
}

export function readDevices(text: string): DeviceChoice[] {
  return text.split(',').filter((name) => name !== '') as DeviceChoice[];
}

/** How many places a job needs at once: fewer than it asked for if it resumes and allows that. */
export function placesNeeded(
  eb: ExpressionBuilder<Schema, 'jobs'>,
): ExpressionWrapper<Schema, 'jobs', number> {
  return eb.case().when('attempt', '=', 0).then(eb.ref('replicas')).else(eb.ref('replicas_min')).end();
}

export function isOnCards(device: DeviceChoice): boolean {
  return device === 'cuda';
}

const onePlace: Places = { free: 1, count: 1 };

/** The places of a device; of the kind that has more of them for `auto`, which may become either unless only cards have the precision. */
export function placesOn(
  device: DeviceChoice,
  { places }: Pick<FreeDevices, 'places'>,
  precision: Precision = 'auto',
): Places {
  const { processors, cards, fp8Cards } = places ?? {
    ...{ processors: onePlace, cards: onePlace, fp8Cards: onePlace },
  };
  if (device !== 'auto' && !isOnCards(device)) return processors;
  if (precision === 'fp8Base') return fp8Cards;
  return isOnCards(device) || cards.count > processors.count ? cards : processors;
}

/** The condition that a job's base is in FP8. A text of its specification cannot look like this, as its quotes are escaped. */
export function isInFp8(eb: ExpressionBuilder<Schema, 'jobs'>): ExpressionWrapper<Schema, 'jobs', SqlBool> {
  return eb('spec', 'like', '%"precision":"fp8Base"%');
}

/**
 * The condition that a job may run on one of the devices, which has as many places (`free` or at all) as the job needs at once. While no
 * card is free that serves FP8, cards are no free device for a base in FP8.
 */
export function hasRoom(
  devices: readonly DeviceChoice[],
  of: Pick<FreeDevices, 'places'>,
  which: keyof Places,
): (eb: ExpressionBuilder<Schema, 'jobs'>) => ExpressionWrapper<Schema, 'jobs', SqlBool> {
  return (eb) =>
    eb.or(
      devices.map((device) => {
        const inFp8 = placesOn(device, of, 'fp8Base');
        return eb.and([
          eb('devices', 'like', `%,${device},%`),
          eb(placesNeeded(eb), '<=', placesOn(device, of)[which]),
          eb.or([eb(placesNeeded(eb), '<=', inFp8.free > 0 ? inFp8[which] : 0), eb.not(isInFp8(eb))]),
        ]);
      }),
    );
}

/** The condition that a job has not begun anywhere, or began on one of these pins. */
export function mayContinueOn(
  pins: FreeDevices['pins'],
): (eb: ExpressionBuilder<Schema, 'jobs'>) => Expression<SqlBool> {
  return (eb) =>
    pins === null
      ? eb.lit(true)
      : eb.or([eb('pin', 'is', null), ...(pins.length === 0 ? [] : [eb('pin', 'in', [...pins])])]);
}

/**
 * Resolves `auto` for jobs at the head of the queue until one of the first could be claimed. It is resolved once and for good, so that an
 * interrupted job resumes on the same kind of device.
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

/** Enough: more waiting jobs are rare. */
const explainedMax = 100;

/** Sets the reason of queued jobs that wait only for one of the devices, or of those in FP8 among them; false if there are none. */
export async function explainWait(
  change: JobChange,
  devices: readonly DeviceName[],
  reason: string,
  { isOfFp8 = false } = {},
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
    .where((eb) => (isOfFp8 ? isInFp8(eb) : eb.lit(true)))
    .limit(explainedMax)
    .forUpdate()
    .skipLocked()
    .execute();
  for (const row of waiting.filter(({ state_reason: known }) => known !== reason))
    await change.append(row, row.attempt, [], { state_reason: reason, version: row.version + 1 });
  return waiting.length > 0;
}
