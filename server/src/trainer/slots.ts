import { existsSync } from 'node:fs';
import {
  capabilityMins,
  cardServes,
  largestKind,
  resolveAuto,
  type Precision,
  type RunSpec,
} from '@relora/engine/plan';
import type { Config } from '../config.js';
import {
  isOnCards,
  pinOf,
  type DeviceDescription,
  type DeviceName,
  type FreeDevices,
  type Places,
} from '../jobs/jobDevices.js';
import { lockCard, type Unlock } from './cardLock.js';
import type { DeviceProblem } from './messages.js';

/** Places for the processes of a job: on the processors, or each on a card of its own. */
export interface Slot {
  device: DeviceName;
  count: number;
  /** Uuids, one for each process; empty for the processors. */
  cards: readonly string[];
}

/** What is known about the devices of this machine. */
export interface KnownDevices {
  /** `devices` and `cards` are null until they were measured; devices include the processors. */
  devices(): readonly DeviceDescription[] | null;
  cards(): readonly DeviceDescription[] | null;
  problems(): readonly DeviceProblem[];
  /** Version of the library by which cards exchange sums; null if there is none. */
  nccl(): string | null;
}

export type SlotSettings = Pick<Config, 'slots' | 'gpuSlots' | 'device' | 'cudaFolder'>;

const processorDevices: readonly DeviceName[] = ['native', 'tensorflow', 'reference'];

/** The places for jobs: RELORA_SLOTS on the processors, and RELORA_GPU_SLOTS on each card that no other server uses. */
export class Slots {
  private processorCount = 0;
  /** Cards that this server has locked, with the number of jobs on each. */
  private readonly held = new Map<string, { unlock: Unlock; count: number }>();
  /** Whether `free` has locked cards that may be taken: until then, the end of another job does not release them. */
  private isOffering = false;

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

  /** Places for the processes of one job. Cards count as free while they are locked, which `free` does. */
  get places(): { processors: Places; cards: Places; fp8Cards: Places } {
    const { slots, gpuSlots } = this.settings;
    const cardsFor = (precision: Precision): Places => ({
      free: largestKind(this.withPlace(precision)).length,
      count:
        gpuSlots === 0
          ? 0
          : largestKind((this.known.cards() ?? []).filter((card) => cardServes(card, precision))).length,
    });
    return {
      processors: { free: Math.max(0, slots - this.processorCount), count: slots },
      cards: cardsFor('auto'),
      fp8Cards: cardsFor('fp8Base'),
    };
  }

  /** Whether the cards of a job can exchange sums directly. */
  get canConnectCards(): boolean {
    return this.known.nccl() !== null;
  }

  /** Whether other servers on this machine use some of its cards. After `free`. */
  get areCardsElsewhere(): boolean {
    return this.settings.gpuSlots > 0 && this.held.size < this.cardCount;
  }

  /**
   * Devices that a job could be started on now. Cards that no other server uses are locked until `giveUnused`.
   * @param offered places that count as free
   */
  async free(offered: Slot | null = null): Promise<DeviceName[]> {
    const onCards = offered !== null && isOnCards(offered.device);
    const offeredSlots = onCards ? 0 : (offered?.count ?? 0);
    const processors = this.processorCount - offeredSlots < this.settings.slots ? processorDevices : [];
    this.isOffering = true;
    await this.holdCards();
    return onCards || this.withPlace().length > 0 ? ['cuda', ...processors] : [...processors];
  }

  /**
   * What this server takes jobs for; other jobs are left to servers with the right device and the instructions that the job began with.
   * @param offered places that are offered to a job of several servers: they count as free
   */
  async ofFleet(offered: Slot | null = null): Promise<FreeDevices> {
    const free = await this.free(offered);
    const resolve = (spec: RunSpec) => this.resolve(spec);
    const { processors, cards, fp8Cards } = this.places;
    const plus = (of: Places, areOffered: boolean): Places => ({
      ...of,
      free: of.free + (areOffered ? offered!.count : 0),
    });
    const onCards = offered !== null && isOnCards(offered.device);
    const places = {
      processors: plus(processors, offered !== null && !onCards),
      cards: plus(cards, onCards),
      fp8Cards: plus(fp8Cards, onCards && fp8Cards.count > 0), // the cards of such a server are of one architecture
    };
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
    await this.holdCards();
    if (this.held.size > 0) return null;
    const [{ model, uuid }, ...others] = cards as [DeviceDescription, ...DeviceDescription[]];
    const more = others.length === 0 ? '' : `, as it does ${others.length} more`;
    return `Waits for a card: another server on this machine uses ${model} ${uuid}${more}`;
  }

  /** Why a job in FP8 waits although there are cards; null if one of them serves it, or if there are none. */
  whyNoFp8Card(): string | null {
    const [card, ...others] = this.known.cards() ?? [];
    if (card === undefined || [card, ...others].some((one) => cardServes(one, 'fp8Base'))) return null;
    const more = others.length === 0 ? '' : `, and those of ${others.length} more are too low`;
    return `Waits for a card of compute capability ${capabilityMins.fp8Base} or newer, which FP8_BASE needs: ${card.model} has ${card.computeCapability}${more}`;
  }

  /**
   * Takes free places on a device that `free` returned: on the cards that are used least of those that serve the precision, several on
   * those of one kind.
   */
  take(device: DeviceName, count = 1, precision: Precision = 'auto'): Slot {
    this.isOffering = false;
    if (!isOnCards(device)) {
      this.processorCount += count;
      return { device, count, cards: [] };
    }
    const withPlace = this.withPlace(precision);
    const taken = (count === 1 ? withPlace : largestKind(withPlace)).slice(0, count);
    for (const { card } of taken) card.count++;
    return { device, count, cards: taken.map(({ uuid }) => uuid) };
  }

  give({ device, count, cards }: Slot): void {
    if (!isOnCards(device)) this.processorCount -= count;
    for (const uuid of cards) this.held.get(uuid)!.count--;
    if (!this.isOffering) this.giveUnused();
  }

  /** Gives back all places but the first `kept`. */
  keep({ device, count, cards }: Slot, kept: number): Slot {
    this.give({ device, count: count - kept, cards: cards.slice(kept) });
    return { device, count: kept, cards: cards.slice(0, kept) };
  }

  /** Releases the cards on which no job of this server runs, for other servers. */
  giveUnused(): void {
    this.isOffering = false;
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

  /** Locks the cards that no other server uses: a job may need several. */
  private async holdCards(): Promise<void> {
    if (this.settings.gpuSlots === 0) return;
    for (const { uuid } of this.known.cards() ?? []) {
      if (this.held.has(uuid)) continue;
      const unlock = await this.lock(uuid);
      if (unlock !== null) this.held.set(uuid, { unlock, count: 0 });
    }
  }

  /** Locked cards with a free place that serve the precision, the least used first. */
  private withPlace(
    precision: Precision = 'auto',
  ): { uuid: string; card: { count: number }; instructionSet: string }[] {
    const known = new Map((this.known.cards() ?? []).map((card) => [card.uuid, card]));
    return [...this.held]
      .filter(([uuid, { count }]) => {
        const { computeCapability = '' } = known.get(uuid) ?? {};
        return count < this.settings.gpuSlots && cardServes({ computeCapability }, precision);
      })
      .sort(([, one], [, other]) => one.count - other.count)
      .map(([uuid, card]) => ({ uuid, card, instructionSet: known.get(uuid)?.instructionSet ?? '' }));
  }
}

const noCard = 'Waits for a card: the driver of NVIDIA is not loaded on this machine';

/** Without a device file of the driver there is no card, so nobody has to wait for a child to find that out. */
export function mayHaveCards({ cudaFolder }: Pick<Config, 'cudaFolder'>): boolean {
  return cudaFolder !== null || ['/dev/nvidiactl', '/dev/dxg'].some((path) => existsSync(path));
}
