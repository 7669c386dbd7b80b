import { isUtf8 } from 'node:buffer';
import { DataError } from './dataErrors.js';
import type { RegularFile } from './regularFile.js';
import { compressionOf, unpackedBlocks, type Compression } from './unpack.js';

/** `json` is a list of objects, `jsonl` one object per line, `csv` a spreadsheet export with column names in its first row. */
export type SourceFormat = 'text' | 'jsonl' | 'json' | 'csv' | 'parquet';

export const sourceFormats: readonly SourceFormat[] = ['text', 'jsonl', 'json', 'csv', 'parquet'];

/** Number of bytes that are examined. */
const headBytes = 1 << 16;

const formatsOfNames: Readonly<Record<string, SourceFormat>> = {
  txt: 'text',
  text: 'text',
  md: 'text',
  csv: 'csv',
  tsv: 'csv',
  jsonl: 'jsonl',
  ndjson: 'jsonl',
  json: 'jsonl',
  parquet: 'parquet',
};

/** First bytes of other file types, to name them when they are refused. */
const foreign: readonly [begin: string, name: string][] = [
  ['BZh', 'bzip2'],
  ['\xfd7zXZ', 'xz'],
  ['\x1f\x8b', 'gzip inside of what was unpacked'],
  ['PK\x03\x04', 'a zip archive'],
  ['7z\xbc\xaf', 'a 7z archive'],
  ['ARROW1', 'Arrow'],
  ['Obj\x01', 'Avro'],
  ['ORC', 'ORC'],
  ['%PDF', 'PDF'],
];

/**
 * Detects a file's format: by its content if that is clear, else by its name. A plain-text extension always counts, since any text may
 * begin with a bracket. Throws FORMAT_UNKNOWN.
 */
export async function recognizeFormat(
  file: RegularFile,
  asked: SourceFormat | 'auto',
  unpackedBytesMax: number,
): Promise<{ format: SourceFormat; compression: Compression }> {
  const compression = await compressionOf(file);
  if (asked !== 'auto' && asked !== 'parquet') return { format: asked, compression };
  const head = await headOf(file, compression, unpackedBytesMax);
  const isParquet = head.toString('latin1', 0, 4) === 'PAR1';
  const unknown = (expected: string, got: string) =>
    new DataError('FORMAT_UNKNOWN', { file: file.name, expected, got });
  if (isParquet && compression !== 'none')
    throw unknown('Parquet as it is, which is packed in itself', `Parquet inside of ${compression}`);
  if (isParquet || asked === 'parquet') return { format: 'parquet', compression: 'none' };

  const named = formatOfName(file.name);
  if (named === 'text' || named === 'csv' || named === 'parquet') return { format: named, compression };
  const format = jsonFormat(head) ?? (isText(head) ? (named ?? 'text') : undefined);
  if (format !== undefined) return { format, compression };
  const got = foreignName(head);
  if (named !== undefined && got === undefined) return { format: named, compression };
  throw unknown(
    'text, JSON lines, a list in JSON, CSV or Parquet',
    got ?? 'something else; a format can be named',
  );
}

/** By the extension, before that of a compression; undefined if it is unknown. */
export function formatOfName(name: string): SourceFormat | undefined {
  const extension = /\.([a-z]+)$/i.exec(name.replace(/\.(gz|gzip|zst|zstd)$/i, ''))?.[1]?.toLowerCase() ?? '';
  return Object.hasOwn(formatsOfNames, extension) ? formatsOfNames[extension] : undefined;
}

async function headOf(file: RegularFile, compression: Compression, bytesMax: number): Promise<Buffer> {
  const blocks: Buffer[] = [];
  let length = 0;
  for await (const block of unpackedBlocks(file, compression, bytesMax)) {
    blocks.push(block);
    length += block.length;
    if (length >= headBytes) break;
  }
  return Buffer.concat(blocks).subarray(0, headBytes);
}

function jsonFormat(head: Buffer): 'json' | 'jsonl' | undefined {
  const start = head.toString('latin1').replace(/^\u00ef\u00bb\u00bf/, '');
  if (/^\s*\[\s*[{\]]/.test(start)) return 'json';
  return /^\s*\{\s*["}]/.test(start) ? 'jsonl' : undefined;
}

function foreignName(head: Buffer): string | undefined {
  if (head.toString('latin1', 257, 262) === 'ustar') return 'a tar archive';
  return foreign.find(([begin]) => head.toString('latin1', 0, begin.length) === begin)?.[1];
}

/** UTF-8 without the control characters of binary files. */
function isText(head: Buffer): boolean {
  const cuts = head.length < headBytes ? [0] : [0, 1, 2, 3]; // the end may cut off the last character
  const isWhole = cuts.some((cut) => isUtf8(head.subarray(0, head.length - cut)));
  return isWhole && !head.some((byte) => byte < 0x20 && (byte < 0x08 || byte > 0x0d) && byte !== 0x1b);
}
