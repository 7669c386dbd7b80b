import { EngineError } from '../engineError.js';
import { reductionBytes } from '../plan/exchangedBytes.js';
import type { ReductionType } from '../plan/words.js';
import type { Collective, Reach } from './collective.js';
import type { DeviceBuffer, DeviceMemory, DirectSums } from './device.js';

/** Another member of a run has ended, or makes different calls than this one. Its last checkpoint is usable. */
export class MemberLost extends EngineError {
  constructor(message: string, options?: ErrorOptions) {
    super('RANK_LOST', message, options);
  }
}

/** Awaits a call that fails when another member leaves. */
export async function orLost<T>(call: Promise<T>): Promise<T> {
  try {
    return await call;
  } catch (error) {
    throw new MemberLost(`The ranks cannot continue: ${(error as Error).message}`, { cause: error });
  }
}

/** How members of a run communicate: shared memory, or MPI. All members make the same calls in the same order. */
export interface Exchange {
  readonly rank: number;
  readonly size: number;
  /**
   * In place, over all members, in the order of their ranks: the same bits everywhere and every time. With `bfloat16` each member's values
   * are rounded, added in float32, and the sum is rounded again: both directions transfer half the bytes. The first `written` values are
   * final, by default all; the others are exchanged when `reach` says so. What is exchanged with others, and in what order, does not depend
   * on it.
   */
  sum(values: Float32Array, type: ReductionType, written?: number): Promise<void>;
  /** Now the first `count` values of the pending sum are final. */
  reach(count: number): void;
  /** The pending sum is rejected instead of waiting for more values. Then this member must leave. */
  abandon(): void;
  /** Whether it is faster to exchange gradients while others are still computed. */
  readonly overlaps: boolean;
  /** The bytes of all members, one after another; all pass the same number. */
  gather(own: Uint8Array): Promise<Uint8Array>;
  /** Informs the others that this member makes no further calls. `isOver`: the run has ended for all. */
  leave(isOver: boolean): void;
}

/** Collective operations over any means of communication; sums of gradients in float32 over devices that are connected, if they are. */
export class ExchangeCollective implements Collective {
  summedBytes = 0;

  constructor(
    private readonly device: Pick<DeviceMemory, 'changeOnHost' | 'isHost'>,
    private readonly exchange: Exchange,
    private readonly direct: DirectSums | null = null,
  ) {}

  get rank(): number {
    return this.exchange.rank;
  }

  get size(): number {
    return this.exchange.size;
  }

  async sum(buffers: readonly DeviceBuffer[], type: ReductionType): Promise<void> {
    for (const buffer of buffers) {
      if (this.direct === null || type !== 'float32') {
        await this.device.changeOnHost(buffer, async (values) => await this.sumAs(values, type));
        continue;
      }
      await this.direct.sum(buffer);
      this.summedBytes += buffer.length * reductionBytes[type];
    }
  }

  async sumWritten(
    buffer: DeviceBuffer,
    type: ReductionType,
    write: (reach: Reach | null) => void,
  ): Promise<void> {
    if (!this.device.isHost || !this.exchange.overlaps) {
      write(null);
      return await this.sum([buffer], type);
    }
    const { exchange } = this;
    await this.device.changeOnHost(buffer, async (values) => {
      const sum = this.sumAs(values, type, 0);
      try {
        write((count) => exchange.reach(count));
      } catch (error) {
        exchange.abandon();
        await sum.catch(() => {}); // reads the buffer until then
        throw error;
      }
      exchange.reach(values.length);
      await sum;
    });
  }

  async mean(buffers: readonly DeviceBuffer[]): Promise<void> {
    const { size } = this;
    for (const buffer of buffers)
      await this.device.changeOnHost(buffer, async (values) => {
        await this.sumAs(values, 'float32');
        for (let i = 0; i < values.length; i++) values[i]! /= size;
      });
  }

  async sumValues(values: Float32Array): Promise<void> {
    await this.sumAs(values, 'float32');
  }

  async sumNumbers(values: readonly number[]): Promise<number[]> {
    const all = await this.gather(Float64Array.from(values));
    return values.map((_, index) => {
      let sum = 0;
      for (let rank = 0; rank < this.size; rank++) sum += all[rank * values.length + index]!;
      return sum;
    });
  }

  async any(flag: boolean): Promise<boolean> {
    return (await this.exchange.gather(Uint8Array.of(flag ? 1 : 0))).includes(1);
  }

  async broadcast<T>(value: T): Promise<T> {
    const own = this.rank === 0 ? Buffer.from(JSON.stringify(value)) : Buffer.alloc(0);
    const [length] = await this.gather(Float64Array.of(own.length));
    const bytes = new Uint8Array(length!);
    bytes.set(own);
    const all = await this.exchange.gather(bytes);
    return JSON.parse(Buffer.from(all.buffer, all.byteOffset, length).toString()) as T;
  }

  leave(isOver = false): void {
    this.direct?.leave();
    this.exchange.leave(isOver);
  }

  private async sumAs(values: Float32Array, type: ReductionType, written?: number): Promise<void> {
    await this.exchange.sum(values, type, written);
    this.summedBytes += values.length * reductionBytes[type];
  }

  private async gather(values: Float64Array): Promise<Float64Array> {
    const all = await this.exchange.gather(new Uint8Array(values.buffer));
    return new Float64Array(all.buffer, all.byteOffset, values.length * this.size);
  }
}
