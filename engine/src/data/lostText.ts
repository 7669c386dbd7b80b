import { DataError } from './dataErrors.js';
import { seenCharacters } from './knownCharacters.js';
import type { DatasetManifest } from './manifest.js';
import type { PlacedPiece } from './documents.js';

/** A document counts as lost if less than this fraction of it is known. */
const knownShareMin = 0.01;
/** Fraction of all text that may be in lost documents: a smiley among a million words is no reason to stop. */
const lostShareMax = 0.01;
/** Fraction of all text that may be unknown: beyond it a model would learn less than half of its input. */
const unknownShareMax = 0.5;
/** Fraction from which unknown text is reported. */
export const unknownShareMin = 0.01;

/** Counts so far, in visible characters. */
export interface LostTextMark {
  document: { characters: number; known: number } | null;
  /** The first lost document. */
  first: { file: string; document: number; characters: number; known: number } | null;
  /** The first document with unknown text. */
  firstUnknown: { file: string; document: number } | null;
  lost: number;
  unknown: number;
  all: number;
}

/** Detects text that a tokenizer does not know, or drops, and that would therefore not be trained on. */
export class LostText {
  /**
   * @param knownCharacters of each token, by its id; null if all text is known
   * @param mark of another LostText, to continue it
   */
  constructor(
    private readonly knownCharacters: Uint16Array | null,
    readonly mark: LostTextMark = {
      ...{ document: null, first: null, firstUnknown: null },
      ...{ lost: 0, unknown: 0, all: 0 },
    },
  ) {}

  add({ text, file, document, endsDocument }: PlacedPiece, tokens: ArrayLike<number>): void {
    const { knownCharacters, mark } = this;
    if (knownCharacters === null) return;
    const present = (mark.document ??= { characters: 0, known: 0 });
    present.characters += seenCharacters(text);
    for (let i = 0; i < tokens.length; i++) present.known += knownCharacters[tokens[i]!]!;
    if (!endsDocument) return;
    mark.document = null;
    const { characters } = present;
    // Normalizers may lengthen a text: some turn ½ into three characters.
    const known = Math.min(present.known, characters);
    mark.all += characters;
    mark.unknown += characters - known;
    if (known < knownShareMin * characters) mark.lost += characters;
    const place = { file, document: document + 1 };
    if (known < characters) mark.firstUnknown ??= place;
    if (known < (1 - unknownShareMax) * characters) mark.first ??= { ...place, characters, known };
  }

  /** Statistics of unknown text, if there is enough to report; throws TEXT_LOST with the first document if there is too much. */
  end(): DatasetManifest['unknown'] {
    const { first, firstUnknown, lost, unknown, all } = this.mark;
    const share = unknown / Math.max(1, all);
    if (first !== null && (lost > lostShareMax * all || share > unknownShareMax))
      throw new DataError('TEXT_LOST', { ...first, share });
    return firstUnknown !== null && share >= unknownShareMin ? { share, first: firstUnknown } : undefined;
  }
}

/** The same as text for people; null if there is nothing to report. */
export function unknownTextOf({ unknown }: DatasetManifest): string | null {
  if (unknown === undefined) return null;
  const { share, first } = unknown;
  return `The tokenizer does not know ${Math.round(100 * share)} % of the text, of which nothing is learned: the first is in ${first.file}, document ${first.document}`;
}
