import type { DropoutPlace } from '../device.js';
import type { CardMemory } from './cardMemory.js';

const bytes = 256;

/** Where the dropout of the micro-batch under way stands, in memory that its masks are made from: so graphs need not be made again. */
export class DropoutPlaces {
  private address = 0;
  private uploaded = '';

  constructor(private readonly memory: CardMemory) {}

  /** Has the memory. */
  prepare(): void {
    if (this.address === 0) this.address = this.memory.card.allocate(bytes);
  }

  /** The address of [first sequence, step] as they are when the kernels behind this run. */
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
