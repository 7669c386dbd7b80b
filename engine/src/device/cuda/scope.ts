import type { CardPieces } from './cardPieces.js';
import type { Lifetime } from './slabs.js';

/** Memory that is released together, for example the temporaries of one call. */
export class Scope {
  private readonly held: number[] = [];

  constructor(
    private readonly memory: Pick<CardPieces, 'take' | 'give'>,
    private readonly lifetime: Lifetime = 'any',
  ) {}

  take(bytes: number): number {
    const address = this.memory.take(bytes, this.lifetime);
    this.held.push(address);
    return address;
  }

  end(): void {
    for (const address of this.held.splice(0)) this.memory.give(address);
  }
}
