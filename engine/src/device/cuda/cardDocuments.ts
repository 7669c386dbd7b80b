import type { Documents } from '../device.js';
import { checkDocuments, documentEnds } from '../documentRows.js';
import type { CardMemory } from './cardMemory.js';
import { Scope } from './scope.js';

/** For each position the first that it sees, and one behind the last that sees it. */
export class CardDocuments implements Documents {
  readonly rowCount: number;
  readonly begins: number;
  readonly ends: number;
  private readonly scope: Scope;

  constructor(memory: CardMemory, begins: Int32Array, time: number) {
    this.rowCount = begins.length;
    this.scope = new Scope(memory);
    checkDocuments(begins, time);
    this.begins = memory.fed(this.scope, 2 * begins.byteLength, (to) => {
      // A captured pass fills it again, with others.
      checkDocuments(begins, time);
      const words = new Int32Array(2 * begins.length);
      words.set(begins);
      words.set(documentEnds(begins, time), begins.length);
      memory.card.upload(to, words);
    });
    this.ends = this.begins + begins.byteLength;
  }

  release(): void {
    this.scope.end();
  }
}

/** As kernels are given them: addresses of zero where documents see each other. */
export function addressesOf(documents: Documents | null): { begins: number; ends: number } {
  if (documents === null) return { begins: 0, ends: 0 };
  const { begins, ends } = documents as CardDocuments;
  return { begins, ends };
}
