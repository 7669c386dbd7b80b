import { DataError } from './dataErrors.js';
import type { PlacedPiece } from './documents.js';

/** More bytes of a document to a token than any tokenizer makes of text that it knows. */
const bytesPerTokenMax = 256;
/** Share of all text that may be lost so: a smiley among a million words is no reason to stop. */
const lostShareMax = 0.01;

/** Notices text of which a tokenizer makes no tokens, or nearly none: what is trained then is not what was given. */
export class LostText {
  private document: { bytes: number; tokens: number; isBlank: boolean } | undefined;
  private first: { file: string; document: number; bytes: number; tokens: number } | undefined;
  private lostBytes = 0;
  private allBytes = 0;

  add({ text, textBytes, file, document, endsDocument }: PlacedPiece, tokenCount: number): void {
    this.document ??= { bytes: 0, tokens: 0, isBlank: true };
    const { document: present } = this;
    present.bytes += textBytes;
    present.tokens += tokenCount;
    present.isBlank &&= !/\S/u.test(text);
    this.allBytes += textBytes;
    if (!endsDocument) return;
    this.document = undefined;
    const { bytes, tokens, isBlank } = present;
    if (isBlank || tokens * bytesPerTokenMax >= bytes) return;
    this.lostBytes += bytes;
    this.first ??= { file, document: document + 1, bytes, tokens };
  }

  /** Throws TEXT_LOST, with the first document that was. */
  end(): void {
    const share = this.lostBytes / Math.max(1, this.allBytes);
    if (this.first !== undefined && share > lostShareMax)
      throw new DataError('TEXT_LOST', { ...this.first, share });
  }
}
