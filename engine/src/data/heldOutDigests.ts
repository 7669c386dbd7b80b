import { createHash } from 'node:crypto';
import { pieceBytesMax } from './dataLimits.js';
import type { Division, PlacedPiece } from './documents.js';
import type { SourceFile } from './regularFile.js';
import type { TextPiece } from './textPieces.js';

/** Digests of texts from the first pass that are needed to keep held-out text out of the training part. */
export interface HeldOutDigests {
  heldOut: ReadonlySet<string>;
  /** Digests of documents that are too long to be buffered in the second pass, by document number. */
  long: ReadonlyMap<number, string>;
}

/** Progress of collecting digests in a first pass. */
export interface FirstDigestsMark {
  explicit: readonly string[];
  candidates: readonly [autoIndex: number, digest: string][];
  long: readonly [document: number, digest: string][];
  documents: number;
  autoDocuments: number;
}

/**
 * Collects digests of documents that may be held out; which ones are is known only at the end of the first pass. Memory grows only with the
 * held-out documents, by a truncated hash for each.
 */
export class FirstDigests {
  private readonly explicit: Set<string> = new Set();
  private readonly candidates: [autoIndex: number, digest: string][] = [];
  private readonly long: Map<number, string> = new Map();
  private documents = 0;
  private autoDocuments = 0;

  /**
   * @param isCandidate whether the `auto` document with this number may be held out; called in order
   * @param mark of an earlier attempt, to continue it
   */
  constructor(
    private readonly isCandidate: (autoIndex: number) => boolean,
    mark?: FirstDigestsMark,
  ) {
    if (mark === undefined) return;
    this.explicit = new Set(mark.explicit);
    this.candidates = [...mark.candidates];
    this.long = new Map(mark.long);
    [this.documents, this.autoDocuments] = [mark.documents, mark.autoDocuments];
    // Replays the candidates, since the state of `isCandidate` depends on earlier calls.
    for (const [index] of mark.candidates) isCandidate(index);
  }

  get mark(): FirstDigestsMark {
    const { candidates, documents, autoDocuments } = this;
    return { explicit: [...this.explicit], candidates, long: [...this.long], documents, autoDocuments };
  }

  add(digest: string, bytes: number, split: SourceFile['split']): void {
    if (bytes > gatheredBytesMax) this.long.set(this.documents, digest);
    if (split === 'heldOut') this.explicit.add(digest);
    if (split === 'auto' && this.isCandidate(this.autoDocuments++))
      this.candidates.push([this.autoDocuments - 1, digest]);
    this.documents++;
  }

  end(division: Division): HeldOutDigests {
    const heldOut = new Set(this.explicit);
    if (division.kind === 'byDocument') {
      for (const [index, digest] of this.candidates) if (division.isHeldOut(index)) heldOut.add(digest);
    }
    return { heldOut, long: this.long };
  }
}

/** Longest document that is buffered for comparison. */
const gatheredBytesMax = pieceBytesMax;

/** Drops every training document that has the same text as a held-out one. */
export async function* withoutHeldOut(
  pieces: AsyncIterable<PlacedPiece>,
  { heldOut, long }: HeldOutDigests,
  onDuplicate: (fileIndex: number) => void,
): AsyncGenerator<PlacedPiece> {
  let gathered: PlacedPiece[] = [];
  let verdict: 'keep' | 'drop' | null = null; // null while the document is being buffered
  for await (const piece of pieces) {
    if (piece.split === 'heldOut') {
      yield piece;
      continue;
    }
    if (verdict === null) {
      gathered.push(piece);
      const known = piece.endsDocument ? digestOf(gathered) : long.get(piece.document);
      // A document that is not long has few pieces; for a long one the first piece decides.
      if (known === undefined) continue;
      verdict = heldOut.has(known) ? 'drop' : 'keep';
      if (verdict === 'drop') onDuplicate(piece.fileIndex);
      else yield* gathered;
      gathered = [];
    } else if (verdict === 'keep') yield piece;
    if (piece.endsDocument) verdict = null;
  }
}

function digestOf(pieces: readonly TextPiece[]): string {
  const hash = createHash('sha256');
  for (const { text } of pieces) hash.update(text);
  return endOf(hash);
}

/** Truncated digest of a text. */
export function endOf(hash: ReturnType<typeof createHash>): string {
  return hash.digest('base64').slice(0, 22); // 132 bits
}
