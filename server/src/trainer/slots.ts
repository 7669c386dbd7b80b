import { existsSync } from 'node:fs';
import { resolveAuto, type RunSpec } from '@relora/engine/plan';
import type { Config } from '../config.js';
import type { DeviceName } from '../jobs/jobDevices.js';
import { lockCard, type Unlock } from './cardLock.js';
import type { DeviceDescription, DeviceProblem } from './messages.js';

/** A place for a job: on the processors, or on a card. */
export interface Slot {
  device: DeviceName;
  /** Null on the processors. */
  uuid: string | null;
}

/** What is known of the devices of this machine. */
export interface KnownDevices {
  /** Null until they were looked for. */
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
    return this.settings.slots + this.settings.gpuSlots * this.cardCount;
  }

  get cardCount(): number {
    return this.known.cards()?.length ?? 0;
  }

  /** On what a job could be started now. A card with a place is held from here on, until `giveUnused`. */
  async free(): Promise<DeviceName[]> {
    const processors = this.processorCount < this.settings.slots ? processorDevices : [];
    return (await this.holdCard()) === null ? [...processors] : ['cuda', ...processors];
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

  /** Takes a place that `free` named. */
  take(device: DeviceName): Slot {
    if (device !== 'cuda') {
      this.processorCount++;
      return { device, uuid: null };
    }
    const [uuid, card] = this.leastUsed()!;
    card.count++;
    return { device, uuid };
  }

  give({ uuid }: Slot): void {
    if (uuid === null) this.processorCount--;
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
