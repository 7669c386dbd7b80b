import type { ReductionType } from '../../plan/words.js';
import { orLost, type Exchange } from '../exchange.js';
import { loadNativeAddon, type NativeAddon, type NativeExchange } from './nativeAddon.js';

/** Connects processes of one machine through an open file that all of them map. */
export class SharedMemory implements Exchange {
  /** Its sums are work of the processors that compute the gradients, so there is nothing to hide behind the backward pass. */
  readonly overlaps = false;
  private readonly exchange: NativeExchange;

  constructor(
    file: number,
    readonly rank: number,
    readonly size: number,
    private readonly addon: NativeAddon = loadNativeAddon(),
  ) {
    this.exchange = addon.openSharedMemory(file, rank, size);
    // An exiting process waits for the thread of a pending call; leaving ends that call, and informs the other members.
    process.once('exit', () => this.leave());
  }

  async sum(values: Float32Array, type: ReductionType, written = values.length): Promise<void> {
    await orLost(this.addon.exchangeSum(this.exchange, values, type, written));
  }

  reach(count: number): void {
    this.addon.exchangeReach(this.exchange, count);
  }

  abandon(): void {
    this.addon.exchangeAbandon(this.exchange);
  }

  async gather(own: Uint8Array): Promise<Uint8Array> {
    const all = new Uint8Array(this.size * own.length);
    await orLost(this.addon.exchangeGather(this.exchange, all, own));
    return all;
  }

  leave(): void {
    this.addon.exchangeLeave(this.exchange);
  }
}
