import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { describe, expect, it } from 'vitest';
import { patienceMs } from '../patience.mjs';
import type { SourceFile } from '@relora/engine/data';
import { dataFolder, failure, sentences } from './dataFixtures.js';

const { source, prepare, folder } = dataFolder();
const program = fileURLToPath(new URL('dataBombs.mjs', import.meta.url));
let outputs = 0;

/** How the preparation of a file ends in a separate process, and its peak memory. */
async function prepareApart(file: SourceFile): Promise<{ ending: string; residentBytes: number }> {
  const output = join(folder, `apart-${outputs++}`);
  // The heap limit is little above what Node itself needs; a hang is ended.
  const options = ['--max-old-space-size=128', program, file.path, file.format, output];
  const { stdout } = await promisify(execFile)(process.execPath, options, { timeout: patienceMs });
  const [ending = '', kilobytes = ''] = stdout.trim().split(' ');
  return { ending, residentBytes: 1024 * Number(kilobytes) };
}

const refused = /^(PARQUET_INVALID|PARQUET_TOO_LARGE|FIELD_MISSING|UTF8_INVALID|DATASET_EMPTY)$/;

/** A number in thrift's encoding: zigzag, then seven bits per byte. */
function thriftNumber(value: number): Buffer {
  const bytes: number[] = [];
  let rest = BigInt(value) * 2n;
  for (; rest >= 0x80n; rest >>= 7n) bytes.push(Number(rest & 0x7fn) | 0x80);
  return Buffer.from([...bytes, Number(rest)]);
}

function parquet(codec: 'SNAPPY' | 'UNCOMPRESSED'): Buffer {
  const texts = Array.from({ length: 50 }, (_, i) => `${i} ${sentences(2)}`);
  return Buffer.from(
    parquetWriteBuffer({ columnData: [{ name: 'text', data: texts, type: 'STRING' }], codec }),
  );
}

describe('Parquet files that claim more than they are', () => {
  it('are refused with each number of their pages and footer made huge, without the memory they claim', async () => {
    const original = parquet('SNAPPY');
    const footerBytes = original.readUInt32LE(original.length - 8);
    const footerAt = original.length - 8 - footerBytes;
    // The file begins with a page header; its first numbers are kind, unpacked size, packed size and number of values.
    const places = [
      ...Array.from({ length: 48 }, (_, i) => 4 + i),
      ...Array.from({ length: footerBytes }, (_, i) => footerAt + i),
    ];
    for (const claim of [2 ** 31 - 1, 2 ** 40, 2 ** 53 + 2]) {
      for (const at of places) {
        const bomb = withNumber(original, at, thriftNumber(claim));
        await prepare([source('claims.parquet', bomb, 'parquet')]).catch((error: { reason?: string }) =>
          expect(error.reason, `${claim} at ${at}: ${String(error)}`).toMatch(refused),
        );
      }
    }
  });

  it('unpacked to more than they say take no more memory than the limits allow', async () => {
    const original = parquet('SNAPPY');
    const unpackedAt = 4 + 3; // after kind in the header of the first page: field header and number
    for (const claim of [2 ** 29, 2 ** 30 - 1, 2 ** 31 - 1]) {
      const bomb = withNumber(original, unpackedAt, thriftNumber(claim));
      const { ending, residentBytes } = await prepareApart(source(`bomb-${claim}.parquet`, bomb, 'parquet'));
      expect(ending).toMatch(refused);
      expect(residentBytes).toBeLessThan(400 * 2 ** 20);
    }
  });
});

/** A hand-made Zstandard frame without a content size, with one block per run of a byte. */
function zstdRuns(runs: [byte: number, count: number][]): Buffer {
  const blockBytesMax = 2 ** 17;
  const blocks = runs.flatMap(([byte, count]) =>
    Array.from({ length: Math.ceil(count / blockBytesMax) }, (_, i) => [
      byte,
      Math.min(blockBytesMax, count - i * blockBytesMax),
    ]),
  );
  const coded = blocks.map(([byte, size], index) => {
    const header = (size! << 3) | (1 << 1) | Number(index === blocks.length - 1);
    return Buffer.from([header & 255, (header >> 8) & 255, header >> 16, byte!]);
  });
  const frame = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, 7 << 3]); // a window of 128 KiB
  return Buffer.concat([frame, ...coded]);
}

describe('Parquet pages that unpack to more than their header says', () => {
  const runs = 4 * 2 ** 30;
  const zeros = Buffer.alloc(2 ** 28);
  const packed: [codec: 'GZIP' | 'BROTLI' | 'ZSTD', bomb: () => Buffer][] = [
    ['GZIP', () => gzipSync(zeros, { level: 9 })],
    ['BROTLI', () => brotliCompressSync(zeros, { params: { [constants.BROTLI_PARAM_QUALITY]: 4 } })],
    ['ZSTD', () => zstdRuns([[0, runs]])],
  ];
  it.each(packed)('take no memory for it: %s', async (codec, bomb) => {
    const content = bomb();
    const file = parquetWriteBuffer({
      columnData: [{ name: 'text', data: ['a text', 'another'], type: 'STRING' }],
      codec,
      compressors: { [codec]: () => content },
    });
    const { ending, residentBytes } = await prepareApart(
      source(`${codec}.parquet`, Buffer.from(file), 'parquet'),
    );
    expect(ending).toMatch(refused);
    expect(residentBytes).toBeLessThan(300 * 2 ** 20);
  });

  it('are read where they are what they say', async () => {
    const text = 'a'.repeat(200_000);
    const codecs = {
      GZIP: (bytes: Uint8Array) => gzipSync(bytes),
      BROTLI: (bytes: Uint8Array) => brotliCompressSync(bytes),
      // Runs of equal bytes: the length of the text, and the text.
      ZSTD: (bytes: Uint8Array) => zstdRuns(runsOf(bytes)),
    };
    for (const codec of ['GZIP', 'BROTLI', 'ZSTD'] as const) {
      const file = parquetWriteBuffer({
        columnData: [{ name: 'text', data: [text], type: 'STRING' }],
        codec,
        compressors: { [codec]: codecs[codec] },
      });
      const { ending } = await prepareApart(source(`sound-${codec}.parquet`, Buffer.from(file), 'parquet'));
      expect(ending, codec).toBe('text');
    }
  });
});

function runsOf(bytes: Uint8Array): [byte: number, count: number][] {
  const found: [byte: number, count: number][] = [];
  for (const byte of bytes) {
    const last = found.at(-1);
    if (last?.[0] === byte) last[1]++;
    else found.push([byte, 1]);
  }
  return found;
}

describe('JSONL files made to harm', () => {
  const cases: [string, string | Buffer, RegExp][] = [
    ['nested deeply', `{"text":${'['.repeat(5_000_000)}`, /^JSONL_LINE_INVALID$/],
    [
      'nested deeply and whole',
      `{"a":${'['.repeat(200_000)}${']'.repeat(200_000)},"text":"x"}`,
      /^(text|JSONL_LINE_INVALID)$/,
    ],
    ['a line that never ends', Buffer.alloc(70 * 2 ** 20, 0x20), /^LINE_TOO_LONG$/],
    ['a long number', `{"n":${'9'.repeat(2_000_000)},"text":"x"}`, /^text$/],
    ['half a pair', '{"text":"\\udc00"}', /^JSONL_LINE_INVALID$/],
    ['NUL', '{"text":"a\\u0000b"}\n\0', /^JSONL_LINE_INVALID$/],
    ['a mark and CRLF', '\ufeff{"text":"a"}\r\n\r\n{"text":"b"}\r\n', /^text$/],
    ['a mark in each line', '\ufeff{"text":"a"}\n\ufeff{"text":"b"}', /^JSONL_LINE_INVALID$/],
    ['UTF-16', Buffer.from('\ufeff{"text":"a"}', 'utf16le'), /^UTF8_INVALID$/],
    [
      'many fields',
      `{${Array.from({ length: 100_000 }, (_, i) => `"f${i}":0,`).join('')}"text":"x"}`,
      /^text$/,
    ],
  ];
  it.each(cases)('%s', async (name, content, expected) => {
    const { ending, residentBytes } = await prepareApart(source(`${name}.jsonl`, content, 'jsonl'));
    expect(ending).toMatch(expected);
    expect(residentBytes).toBeLessThan(500 * 2 ** 20);
  });

  it('with pairs end the same way', async () => {
    const pairFields = { prompt: 'prompt', completion: 'completion' };
    for (const line of [
      '{"prompt":"x"}',
      '{"prompt":"x","completion":7}',
      '{"prompt":null,"completion":"y"}',
    ])
      await failure(prepare([source('p.jsonl', line, 'jsonl')], { pairFields }), 'FIELD_MISSING');
    const half = '{"prompt":"\\ud800","completion":"y"}';
    await failure(prepare([source('p.jsonl', half, 'jsonl')], { pairFields }), 'JSONL_LINE_INVALID');
  });
});

/** Replaces the thrift number at a position; lengths outside of the footer stay the same, so the rest is shifted. */
function withNumber(original: Buffer, at: number, number: Buffer): Buffer {
  let end = at;
  while (original[end]! >= 0x80) end++;
  const changed = Buffer.concat([original.subarray(0, at), number, original.subarray(end + 1)]);
  const footerAt = original.length - 8 - original.readUInt32LE(original.length - 8);
  const footerBytes =
    original.length - 8 - footerAt + (at >= footerAt ? changed.length - original.length : 0);
  changed.writeUInt32LE(footerBytes, changed.length - 8);
  return changed;
}
