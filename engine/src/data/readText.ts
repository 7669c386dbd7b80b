import { DataError } from './dataError.js';
import type { DataLimits } from './limits.js';
import { decodeUtf8, openSource, withoutByteOrderMark, type DocumentPiece, type SourceFile } from './sourceFile.js';

const pieceBytes = 1 << 20;

/** A text file is one document. It is read in pieces cut before white space, where a byte-level tokenizer always begins a new token. */
export async function* readText(file: SourceFile, limits: DataLimits): AsyncGenerator<DocumentPiece> {
  const { handle, sizeBytes } = await openSource(file);
  try {
    let pending: Buffer = Buffer.alloc(0);
    let pendingOffset = 0;
    let position = 0;
    while (position < sizeBytes) {
      const buffer = Buffer.allocUnsafe(Math.min(pieceBytes, sizeBytes - position));
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, position);
      if (bytesRead === 0) break; // shorter than it was
      position += bytesRead;
      pending = Buffer.concat([pending, buffer.subarray(0, bytesRead)]);
      if (position >= sizeBytes) break;

      const cut = lastCut(pending);
      if (cut > 0) {
        yield { text: decode(pending.subarray(0, cut), file.name, pendingOffset), isLast: false };
        pending = pending.subarray(cut);
        pendingOffset += cut;
      } else if (pending.length > limits.lineBytesMax) {
        throw new DataError('LINE_TOO_LONG', `${file.name} has no white space from byte ${pendingOffset} on for ${pending.length} bytes, the limit is ${limits.lineBytesMax}`);
      }
    }
    yield { text: decode(pending, file.name, pendingOffset), isLast: true };
  } finally {
    await handle.close();
  }
}

function decode(bytes: Buffer, name: string, offset: number): string {
  return decodeUtf8(offset === 0 ? withoutByteOrderMark(bytes) : bytes, name, offset);
}

/** The last place where white space follows something else; 0 if there is none. */
function lastCut(bytes: Buffer): number {
  for (let i = bytes.length - 1; i > 0; i--) {
    if (isSpace(bytes[i]!) && !isSpace(bytes[i - 1]!)) return i;
  }
  return 0;
}

function isSpace(byte: number): boolean {
  return byte === 0x20 || (byte >= 0x09 && byte <= 0x0d);
}
