import { existsSync } from 'node:fs';
import { resolveAuto, type RunSpec } from '@relora/engine/plan';
import type { Config } from '../config.js';
import { pinOf, type DeviceDescription, type DeviceName, type FreeDevices } from '../jobs/jobDevices.js';
import { lockCard, type Unlock } from './cardLock.js';
import type { DeviceProblem } from './messages.js';

/** A place for a job: on the processors or on a card. */
export interface Slot {
  device: DeviceName;
  /** Null for the processors. */
  uuid: string | null;
  /** Number of places, one for each process. */
  count: number;
}

/** What is known about the devices of this machine. */
export interface KnownDevices {
  /** `devices` and `cards` are null until they were measured; devices include the processors. */
  devices(): readonly DeviceDescription[] | null;
  cards(): readonly DeviceDescription[] | null;
  problems(): readonly DeviceProblem[];
}

export type SlotSettings = Pick<Config, 'slots' | 'gpuSlots' | 'device' | 'cudaFolder'>;

const processorDevices: readonly DeviceName[] = ['native', 'tensorflow', 'reference'];

/** The places for jobs: RELORA_SLOTS on the processors, and RELORA_GPU_SLOTS on each card that no other server uses. */
export class Slots {
  private processorCount = 0;
  /** Cards that this server has locked, with the number of jobs on each. */
  private readonly held = new Map<string, { unlock: Unlock; count: number }>();

  constructor(
    private readonly settings: SlotSettings,
    private readonly known: KnownDevices,
    private readonly lock: (uuid: string) => Promise<Unlock | null> = lockCard,
  ) {}

  /** Total of processors and cards. */
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

  /** Places for processes on the processors: free ones and all. */
  get places(): { free: number; count: number } {
    const { slots } = this.settings;
    return { free: Math.max(0, slots - this.processorCount), count: slots };
  }

  /** Devices that a job could be started on now. A card with a free place is locked until `giveUnused`. */
  async free(offered = 0): Promise<DeviceName[]> {
    const processors = this.processorCount - offered < this.settings.slots ? processorDevices : [];
    return (await this.holdCard()) === null ? [...processors] : ['cuda', ...processors];
  }

  /**
   * What this server takes jobs for; other jobs are left to servers with the right device and the instructions that the job began with.
   * @param offered places on the processors that are offered to a job of several servers: they count as free
   */
  async ofFleet(offered = 0): Promise<FreeDevices> {
    const free = await this.free(offered);
    const resolve = (spec: RunSpec) => this.resolve(spec);
    const places = { ...this.places, free: this.places.free + offered };
    const devices = this.known.devices();
    // Until the devices are known, only jobs that have not begun anywhere are taken.
    if (devices === null) return { free, places, pins: [], resolve };
    const here = new Set(devices.map(({ backend }) => backend));
    const pins = [...new Set(devices.map(pinOf))];
    return { free: free.filter((name) => here.has(name)), places, pins, resolve };
  }

  /** Why a job that can only run on a card waits; null if a card is free, or if all that is in the way are jobs of this server. */
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

  /** Takes a place on a device that `free` returned, or several places on the processors. */
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

  /** Releases the cards on which no job of this server runs, for other servers. */
  giveUnused(): void {
    for (const [uuid, { unlock, count }] of this.held) {
      if (count > 0) continue;
      unlock();
      this.held.delete(uuid);
    }
  }

  /** What `auto` means for a job, by a fixed rule; null until the cards are known. */
  resolve(spec: RunSpec): DeviceName | null {
    const { device, gpuSlots } = this.settings;
    if (device !== 'auto') return device;
    const cards = this.known.cards();
    if (cards === null && gpuSlots > 0 && mayHaveCards(this.settings)) return null;
    return resolveAuto(spec, gpuSlots > 0 ? (cards ?? []) : [], gpuSlots);
  }

  /** A locked card with a free place; if there is none, locks another card that no other server uses. */
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

/** Without a device file of the driver there is no card, so nobody has to wait for a child to find that out. */
export function mayHaveCards({ cudaFolder }: Pick<Config, 'cudaFolder'>): boolean {
  return cudaFolder !== null || ['/dev/nvidiactl', '/dev/dxg'].some((path) => existsSync(path));
}
