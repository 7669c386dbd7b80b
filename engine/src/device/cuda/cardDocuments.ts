import type { Documents } from '../device.js';
import { checkDocuments, documentEnds } from '../documentRows.js';
import type { CardMemory } from './cardMemory.js';
import { Scope } from './scope.js';

/** For each position: the first position that it attends to, and one past the last position that attends to it. */
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
      // A captured pass fills it again, with other documents.
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

/** As kernel arguments: both addresses are 0 if documents attend to each other. */
export function addressesOf(documents: Documents | null): { begins: number; ends: number } {
  if (documents === null) return { begins: 0, ends: 0 };
  const { begins, ends } = documents as CardDocuments;
  return { begins, ends };
}
