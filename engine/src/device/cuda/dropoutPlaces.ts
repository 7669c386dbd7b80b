import type { DropoutPlace } from '../device.js';
import type { CardMemory } from './cardMemory.js';

const bytes = 256;

/** Position of the current micro-batch for dropout, in memory that mask kernels read: so graphs stay valid from step to step. */
export class DropoutPlaces {
  private address = 0;
  private uploaded = '';

  constructor(private readonly memory: CardMemory) {}

  /** Allocates the memory. */
  prepare(): void {
    if (this.address === 0) this.address = this.memory.card.allocate(bytes);
  }

  /** The address of [first sequence, step], valid for kernels queued after this call. */
  of(place: DropoutPlace): number {
    this.prepare();
    this.memory.fedOnce(place, () => {
      const words = Uint32Array.of(place.firstSequence, place.step);
      const key = words.join();
      if (key !== this.uploaded) this.memory.card.upload(this.address, words);
      this.uploaded = key;
    });
    return this.address;
  }
}
