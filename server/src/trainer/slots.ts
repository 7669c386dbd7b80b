import { existsSync } from 'node:fs';
import { resolveAuto, type RunSpec } from '@relora/engine/plan';
import type { Config } from '../config.js';
import { pinOf, type DeviceDescription, type DeviceName, type FreeDevices } from '../jobs/jobDevices.js';
import { lockCard, type Unlock } from './cardLock.js';
import type { DeviceProblem } from './messages.js';

/** A place for a job: on the processors, or on a card. */
export interface Slot {
  device: DeviceName;
  /** Null on the processors. */
  uuid: string | null;
  /** So many places at once, each for a process. */
  count: number;
}

/** What is known of the devices of this machine. */
export interface KnownDevices {
  /** Processors and cards; null until they were looked for, as the next. */
  devices(): readonly DeviceDescription[] | null;
  cards(): readonly DeviceDescription[] | null;
  problems(): readonly DeviceProblem[];
}

export type SlotSettings = Pick<Config, 'slots' | 'gpuSlots' | 'device' | 'cudaFolder'>;

const processorDevices: readonly DeviceName[] = ['native', 'tensorflow', 'reference'];

/** What the machine has for jobs: RELORA_SLOTS on its processors, and RELORA_GPU_SLOTS on each card that no other server holds. */
export class Slots {
  private processorCount = 0;
  /** Cards that this server holds, with how many jobs are on each. */
  private readonly held = new Map<string, { unlock: Unlock; count: number }>();

  constructor(
    private readonly settings: SlotSettings,
    private readonly known: KnownDevices,
    private readonly lock: (uuid: string) => Promise<Unlock | null> = lockCard,
  ) {}

  /** Of processors and cards together. */
  get count(): number {
    return this.settings.slots + this.cardSlotCount;
  }

  get cardSlotCount(): number {
    return this.settings.gpuSlots * this.cardCount;
  }

  get cardCount(): number {
    return this.known.cards()?.length ?? 0;
  }

  /** Places that are taken. */
  get inUse(): number {
    return [...this.held.values()].reduce((sum, { count }) => sum + count, this.processorCount);
  }

  /** Of processes on the processors: those that are free now, and all. */
  get places(): { free: number; count: number } {
    const { slots } = this.settings;
    return { free: Math.max(0, slots - this.processorCount), count: slots };
  }

  /** On what a job could be started now. A card with a place is held from here on, until `giveUnused`. */
  async free(besides = 0): Promise<DeviceName[]> {
    const processors = this.processorCount - besides < this.settings.slots ? processorDevices : [];
    return (await this.holdCard()) === null ? [...processors] : ['cuda', ...processors];
  }

  /**
   * What of several servers this one takes jobs for: the rest is left to those that have the device, and with the same instructions as
   * a job began with.
   * @param besides places of the processors that are taken, and count as free
   */
  async ofFleet(besides = 0): Promise<FreeDevices> {
    const free = await this.free(besides);
    const resolve = (spec: RunSpec) => this.resolve(spec);
    const places = { ...this.places, free: this.places.free + besides };
    const devices = this.known.devices();
    // Until they were looked for: what has not begun anywhere begins here.
    if (devices === null) return { free, places, pins: [], resolve };
    const here = new Set(devices.map(({ backend }) => backend));
    const pins = [...new Set(devices.map(pinOf))];
    return { free: free.filter((name) => here.has(name)), places, pins, resolve };
  }

  /** Why a job that waits for nothing but a card does; null when one is free, or busy with jobs of this server alone. */
  async whyNoCard(): Promise<string | null> {
    const cards = this.known.cards();
    if (this.settings.gpuSlots === 0) return 'Waits for a card: RELORA_GPU_SLOTS is 0 here';
    if (cards === null) return mayHaveCards(this.settings) ? 'Waits until the cards were looked for' : noCard;
    if (cards.length === 0)
      return `Waits for a card: ${this.known.problems().find(({ backend }) => backend === 'cuda')?.message ?? 'there is none'}`;
    if ((await this.holdCard()) !== null || this.held.size > 0) return null;
    const [{ model, uuid }, ...others] = cards as [DeviceDescription, ...DeviceDescription[]];
    const more = others.length === 0 ? '' : `, as it does ${others.length} more`;
    return `Waits for a card: another server on this machine uses ${model} ${uuid}${more}`;
  }

  /** Takes a place that `free` named, or several of the processors. */
  take(device: DeviceName, count = 1): Slot {
    if (device !== 'cuda') {
      this.processorCount += count;
      return { device, uuid: null, count };
    }
    const [uuid, card] = this.leastUsed()!;
    card.count++;
    return { device, uuid, count: 1 };
  }

  give({ uuid, count }: Slot): void {
    if (uuid === null) this.processorCount -= count;
    else this.held.get(uuid)!.count--;
    this.giveUnused();
  }

  /** Lets other servers have the cards on which nothing of this one runs. */
  giveUnused(): void {
    for (const [uuid, { unlock, count }] of this.held) {
      if (count > 0) continue;
      unlock();
      this.held.delete(uuid);
    }
  }

  /** Which device `auto` is for a job, by a fixed rule; null until the cards were looked for. */
  resolve(spec: RunSpec): DeviceName | null {
    const { device, gpuSlots } = this.settings;
    if (device !== 'auto') return device;
    const cards = this.known.cards();
    if (cards === null && gpuSlots > 0 && mayHaveCards(this.settings)) return null;
    return resolveAuto(spec, gpuSlots > 0 ? (cards ?? []) : [], gpuSlots);
  }

  /** A held card with a place; where there is none, one more is taken if no other server has it. */
  private async holdCard(): Promise<string | null> {
    const least = this.leastUsed();
    if (least !== undefined) return least[0];
    if (this.settings.gpuSlots === 0) return null;
    for (const { uuid } of this.known.cards() ?? []) {
      if (this.held.has(uuid)) continue;
      const unlock = await this.lock(uuid);
      if (unlock === null) continue;
      this.held.set(uuid, { unlock, count: 0 });
      return uuid;
    }
    return null;
  }

  private leastUsed(): [uuid: string, card: { count: number }] | undefined {
    const withPlace = [...this.held].filter(([, { count }]) => count < this.settings.gpuSlots);
    return withPlace.sort(([, one], [, other]) => one.count - other.count)[0];
  }
}

const noCard = 'Waits for a card: the driver of NVIDIA is not loaded on this machine';

/** Without a device of the driver there is no card, and nobody has to wait until a child has found that out. */
export function mayHaveCards({ cudaFolder }: Pick<Config, 'cudaFolder'>): boolean {
  return cudaFolder !== null || ['/dev/nvidiactl', '/dev/dxg'].some((path) => existsSync(path));
}
