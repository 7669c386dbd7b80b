import { DataError } from './dataErrors.js';
import { divider, piecesOfFile, type DocumentOptions, type PlacedPiece } from './documents.js';
import type { FirstPass } from './firstPass.js';
import { withoutHeldOut } from './heldOutDigests.js';
import { InvalidRows, type SkipInvalid } from './invalidRows.js';
import { RegularFile, type SourceFile } from './regularFile.js';

/** Another pass over all text. */
export interface Pass extends FirstPass {
  files: readonly SourceFile[];
  documents: DocumentOptions;
  skipInvalid: SkipInvalid | null;
  progress: (share: number) => void;
  signal: AbortSignal;
}

/** Where a pass starts: the index of the first file, and how many bytes of its text were processed before. */
export interface ReadFrom {
  file: number;
  textBytes: number;
}

/** All text in order from a file on, each piece with its part; documents with held-out text are dropped from training. */
export function placedPieces(
  pass: Pass,
  onDuplicate: (fileIndex: number) => void,
  from: ReadFrom = { file: 0, textBytes: 0 },
): AsyncGenerator<PlacedPiece> {
  const pieces = allPieces(pass, from);
  return pass.digests === null ? pieces : withoutHeldOut(pieces, pass.digests, onDuplicate);
}

async function* allPieces(pass: Pass, from: ReadFrom): AsyncGenerator<PlacedPiece> {
  const { files, sources, division, documents, skipInvalid, progress, signal, textBytes } = pass;
  const before = sources.slice(0, from.file);
  const sumOf = (of: 'documents' | 'textBytes', only?: 'auto') =>
    before.reduce((sum, source, index) => sum + (only && files[index]!.split !== only ? 0 : source[of]), 0);
  const place = divider(division, {
    documents: sumOf('documents', 'auto'),
    bytes: sumOf('textBytes', 'auto'),
  });
  const rows = new InvalidRows(skipInvalid); // leaves out the same rows as the first pass
  let done = sumOf('textBytes');
  const known = done + from.textBytes;
  let document = sumOf('documents');
  progress(known / textBytes);
  for (const [index, source] of files.entries()) {
    if (index < from.file) continue;
    const { name, split } = source;
    const file = await RegularFile.open(source);
    try {
      const { format, compression } = sources[index]!;
      if (file.stamp !== sources[index]!.stamp) throw new DataError('FILE_CHANGED', { file: name });
      for await (const piece of piecesOfFile({ file, format, compression }, documents, rows)) {
        signal.throwIfAborted();
        const placed = split === 'auto' ? place(piece) : [{ ...piece, split }];
        for (const part of placed) yield { ...part, file: name, fileIndex: index, document };
        if (piece.endsDocument) document++;
        done += piece.textBytes;
        progress(Math.max(done, known) / textBytes);
      }
      await file.assertUnchanged();
    } finally {
      await file.close();
    }
  }
}

/** Error: nothing is left to train on. */
export function emptyTrainingPart(
  { files, heldOutDocuments }: Pass,
  duplicateDocumentCount: number,
): DataError {
  const heldOutDocumentCount = heldOutDocuments;
  return new DataError('DATASET_EMPTY', {
    fileCount: files.length,
    heldOutDocumentCount,
    duplicateDocumentCount,
  });
}
