import { DataError } from './dataErrors.js';
import { seenCharacters } from './knownCharacters.js';
import type { DatasetManifest } from './manifest.js';
import type { PlacedPiece } from './documents.js';

/** A document is lost of which less than this share is known: what is left of it is not what it said. */
const knownShareMin = 0.01;
/** Share of all text that may be lost so: a smiley among a million words is no reason to stop. */
const lostShareMax = 0.01;
/** Share of all text that may be unknown here and there: beyond it a model would learn of less than it is given. */
const unknownShareMax = 0.5;
/** Share from which it is reported. */
export const unknownShareMin = 0.01;

/** What was noticed so far; all counts are of characters that are seen. */
export interface LostTextMark {
  document: { characters: number; known: number } | null;
  /** The first document of which most is unknown. */
  first: { file: string; document: number; characters: number; known: number } | null;
  /** The first in which anything is. */
  firstUnknown: { file: string; document: number } | null;
  lost: number;
  unknown: number;
  all: number;
}

/** Notices text that a tokenizer does not know, or drops: what is trained then is not what was given. */
export class LostText {
  /**
   * @param knownCharacters of each token, by its id; null where every text is known
   * @param mark what another one came to, which this continues
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
    // Normalizers may make more of a text than there was: ½ is three characters to some.
    const known = Math.min(present.known, characters);
    mark.all += characters;
    mark.unknown += characters - known;
    if (known < knownShareMin * characters) mark.lost += characters;
    const place = { file, document: document + 1 };
    if (known < characters) mark.firstUnknown ??= place;
    if (known < (1 - unknownShareMax) * characters) mark.first ??= { ...place, characters, known };
  }

  /** What of the text is unknown, if it is enough to be reported; throws TEXT_LOST where it is too much, with the first document. */
  end(): DatasetManifest['unknown'] {
    const { first, firstUnknown, lost, unknown, all } = this.mark;
    const share = unknown / Math.max(1, all);
    if (first !== null && (lost > lostShareMax * all || share > unknownShareMax))
      throw new DataError('TEXT_LOST', { ...first, share });
    return firstUnknown !== null && share >= unknownShareMin ? { share, first: firstUnknown } : undefined;
  }
}

/** The same for people; null where there is nothing to report. */
export function unknownTextOf({ unknown }: DatasetManifest): string | null {
  if (unknown === undefined) return null;
  const { share, first } = unknown;
  return `The tokenizer does not know ${Math.round(100 * share)} % of the text, of which nothing is learned: the first is in ${first.file}, document ${first.document}`;
}
