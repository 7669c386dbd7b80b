import { execFileSync } from 'node:child_process';
import { symlinkSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { describe, expect, it } from 'vitest';
import { Dataset, prepareDataset, type SourceFile } from '@relora/engine/data';
import { dataFolder, failure, mutated, sentences } from './dataFixtures.js';

const { source, prepare, path, folder } = dataFolder();

/** Documents of the training part as text; tokens are bytes, so that this is everything that was read. */
async function documentsOf(file: SourceFile): Promise<string[]> {
  const dataset = await Dataset.open(await prepare([file]), { verify: true });
  const tokens = dataset.train.read(0, dataset.train.tokenCount);
  await dataset.close();
  const documents: number[][] = [[]];
  for (const token of tokens) {
    if (token === 256) documents.push([]);
    else documents.at(-1)!.push(token);
  }
  return documents.slice(0, -1).map((bytes) => Buffer.from(bytes).toString('utf8'));
}

function parquet(texts: unknown[], options: object = {}, type = 'STRING'): Buffer {
  return Buffer.from(
    parquetWriteBuffer({
      columnData: [
        { name: 'id', data: texts.map((_, id) => id), type: 'INT32' },
        { name: 'text', data: texts, type: type as 'STRING' },
      ],
      ...options,
    }),
  );
}

describe('text files', () => {
  it('are one document; the byte order mark goes, line ends, NUL and blanks stay', async () => {
    expect(await documentsOf(source('plain.txt', '\ufeffone\r\ntwo\0 \n\nnaïve 日本 🙂', 'text'))).toEqual([
      'one\r\ntwo\0 \n\nnaïve 日本 🙂',
    ]);
  });

  it('larger than what is read at a time come through whole, with words, without words and without white space', async () => {
    for (const text of [
      sentences(60_000),
      '日本語'.repeat(300_000),
      ' '.repeat(2_500_000),
      'a🙂'.repeat(500_000),
    ]) {
      const [document, ...others] = await documentsOf(source('large.txt', text, 'text'));
      expect(others).toEqual([]);
      expect(document === text).toBe(true);
    }
  });

  it('with broken UTF-8 are refused with the byte', async () => {
    const good = Buffer.from(`${sentences(40_000)}é`);
    for (const [bad, at] of [
      [Buffer.concat([good, Buffer.from([0xff]), good]), good.length],
      [Buffer.concat([good, Buffer.from([0xe6, 0x97])]), good.length], // cut within a character
      [Buffer.from([0xc0, 0xaf]), 0],
      [Buffer.from([0x61, 0xed, 0xa0, 0x80]), 1], // a surrogate
    ] as const) {
      const error = await failure(prepare([source('broken.txt', bad, 'text')]), 'UTF8_INVALID');
      expect(error.detail).toMatchObject({ file: 'broken.txt', byteOffset: at });
      expect(error.message).toContain(`broken.txt, byte ${at}`);
    }
  });
});

describe('JSONL files', () => {
  it('give a document for each line; blank lines and other fields do not matter', async () => {
    const lines =
      '\ufeff{"text":"one"}\r\n\n  \n{"id":2,"text":"two\\nlines 🙂"}\n{"text":""}\n{"text":"\\u0041"}';
    expect(await documentsOf(source('lines.jsonl', lines, 'jsonl'))).toEqual(['one', 'two\nlines 🙂', 'A']);
  });

  it('are read across block borders', async () => {
    const texts = Array.from({ length: 400 }, (_, index) => `${index} ${sentences(1 + (index % 90))}`);
    expect(
      await documentsOf(
        source('many.jsonl', texts.map((text) => JSON.stringify({ text })).join('\n'), 'jsonl'),
      ),
    ).toEqual(texts);
  });

  it('name line and byte of what is wrong', async () => {
    const first = '{"text":"ä"}\n';
    const bad = async (
      line: string | Buffer,
      reason: 'JSONL_LINE_INVALID' | 'FIELD_MISSING' | 'UTF8_INVALID',
    ) => {
      const file = source(
        'bad.jsonl',
        Buffer.concat([Buffer.from(first), Buffer.from(line), Buffer.from('\n')]),
        'jsonl',
      );
      return (await failure(prepare([file]), reason)).message;
    };
    expect(await bad('{"text":', 'JSONL_LINE_INVALID')).toContain(
      'bad.jsonl, line 2 at byte 14: expected a JSON object, got what is not JSON: ',
    );
    expect(await bad('["text"]', 'JSONL_LINE_INVALID')).toContain(
      'line 2 at byte 14: expected a JSON object, got a list of 1',
    );
    expect(await bad('{"text":"\\ud800"}', 'JSONL_LINE_INVALID')).toContain('half of a surrogate pair');
    expect(await bad('{"body":"x"}', 'FIELD_MISSING')).toBe(
      'bad.jsonl, line 2 at byte 14: expected text in "text", got fields body',
    );
    expect(await bad('{"text":null}', 'FIELD_MISSING')).toContain('got null');
    expect(await bad(Buffer.from([0x22, 0xff, 0x22]), 'UTF8_INVALID')).toContain('line 2, byte 15');
  });

  it('take a field from the line itself only', async () => {
    const file = source('prototype.jsonl', '{"__proto__":{"text":"x"}}', 'jsonl');
    await failure(prepare([file]), 'FIELD_MISSING');
    await failure(prepare([file], { textField: 'constructor' }), 'FIELD_MISSING');
  });

  it('with a line beyond the limit are refused, wherever it ends', async () => {
    for (const end of ['', '\n', '\n{"text":"x"}']) {
      const file = source('long.jsonl', `{"text":"x"}\n{"text":"${'x'.repeat(2 ** 21)}"}${end}`, 'jsonl');
      const error = await failure(prepare([file], { limits: { lineBytesMax: 2 ** 20 } }), 'LINE_TOO_LONG');
      expect(error.detail).toEqual({ file: 'long.jsonl', line: 2, byteOffset: 13, bytesMax: 2 ** 20 });
    }
  });
});

describe('Parquet files', () => {
  const texts = Array.from({ length: 500 }, (_, index) => `${index} ä🙂 ${sentences(index % 7)}`);

  it('give a document for each row, over row groups and codecs', async () => {
    for (const options of [{}, { rowGroupSize: 64 }, { codec: 'UNCOMPRESSED' }]) {
      expect(await documentsOf(source('rows.parquet', parquet(texts, options), 'parquet'))).toEqual(texts);
    }
    const repeated = texts.map((_, index) => `the same ${index % 3}`); // stored in a dictionary
    expect(await documentsOf(source('repeated.parquet', parquet(repeated), 'parquet'))).toEqual(repeated);
  });

  it('without the column, or with one that holds no text, are refused', async () => {
    const rows = source('rows.parquet', parquet(texts), 'parquet');
    expect((await failure(prepare([rows], { textField: 'body' }), 'FIELD_MISSING')).message).toBe(
      'rows.parquet, schema: expected text in "body", got columns id, text',
    );
    expect((await failure(prepare([rows], { textField: 'id' }), 'FIELD_MISSING')).message).toContain(
      'a column of type INT32',
    );
    const nulls = source('null.parquet', parquet(['a', null, 'b']), 'parquet');
    expect((await failure(prepare([nulls]), 'FIELD_MISSING')).message).toContain('null.parquet, row 2');
  });

  it('with bytes that are not UTF-8 name the row', async () => {
    const content = parquet(['a text', 'b text'], { codec: 'UNCOMPRESSED' });
    const at = content.indexOf('b text');
    content[at] = 0xff;
    const error = await failure(prepare([source('bytes.parquet', content, 'parquet')]), 'UTF8_INVALID');
    expect(error.message).toContain('row 2');
  });

  it('that are cut short, empty or of another format are refused', async () => {
    const content = parquet(texts, { rowGroupSize: 100 });
    for (const length of [0, 3, 11, 12, 100, content.length >> 1, content.length - 9, content.length - 1]) {
      await failure(
        prepare([source('cut.parquet', content.subarray(0, length), 'parquet')]),
        'PARQUET_INVALID',
      );
    }
    await failure(prepare([source('text.parquet', sentences(100), 'parquet')]), 'PARQUET_INVALID');
  });

  it('beyond a limit are refused before their rows are read', async () => {
    const rows = source('rows.parquet', parquet(texts), 'parquet');
    for (const limits of [
      { parquetRowsMax: 499 },
      { parquetColumnBytesMax: 1000 },
      { parquetFooterBytesMax: 10 },
    ]) {
      await failure(prepare([rows], { limits }), 'PARQUET_TOO_LARGE');
    }
    await failure(prepare([rows], { limits: { documentBytesMax: 100 } }), 'DOCUMENT_TOO_LONG');
  });
});

describe('paths', () => {
  it('that lead to no regular file are refused at once', async () => {
    const real = source('real.txt', 'text', 'text');
    symlinkSync(real.path, path('link.txt'));
    execFileSync('mkfifo', [path('pipe.txt')]);
    const open = (name: string, where = path(name)) =>
      prepare([{ path: where, name, format: 'text', split: 'auto' }]);
    expect((await failure(open('link.txt'), 'FILE_NOT_REGULAR')).message).toContain('a symbolic link');
    expect((await failure(open('pipe.txt'), 'FILE_NOT_REGULAR')).message).toContain('a pipe');
    await failure(open('zero', '/dev/zero'), 'FILE_NOT_REGULAR');
    await failure(open('folder', folder), 'FILE_NOT_REGULAR');
    expect((await failure(open('nothing.txt'), 'FILE_UNREADABLE')).message).toBe(
      'nothing.txt cannot be read: ENOENT',
    );
  });

  it('whose file changes between two readings are refused', async () => {
    const files = [
      source('stable.txt', sentences(2000), 'text'),
      source('changing.txt', sentences(2000), 'text'),
    ];
    const outputFolder = join(folder, 'changed');
    let isChanged = false;
    const change = () => {
      if (isChanged) return;
      isChanged = true;
      truncateSync(files[1]!.path, 100);
    };
    const options = {
      files,
      outputFolder,
      tokenizer: { kind: 'bytes' as const },
      textField: 'text',
      heldOutShare: 0,
      seed: 1,
    };
    // The first reading is a fifth of the work.
    await failure(
      prepareDataset(options, (share) => share > 0.2 && change(), new AbortController().signal),
      'FILE_CHANGED',
    );
  });
});

it('hundreds of damaged files end in an error of the catalog or in text, never in a crash', async () => {
  const originals: [SourceFile['format'], Buffer][] = [
    [
      'jsonl',
      Buffer.from(
        Array.from({ length: 6 }, (_, id) => JSON.stringify({ id, text: `line ${id} ä` })).join('\n'),
      ),
    ],
    ['parquet', parquet(['one', 'two ä', 'three', 'one'], { codec: 'SNAPPY' })],
    ['parquet', parquet(['one', 'two ä', 'three', 'one'], { codec: 'UNCOMPRESSED', rowGroupSize: 2 })],
    ['text', Buffer.from('some text ä 🙂\n'.repeat(4))],
  ];
  let refused = 0;
  for (let number = 0; number < 400; number++) {
    const [format, original] = originals[number % originals.length]!;
    const file = source(`mutated-${number}`, mutated(original, number), format);
    try {
      await prepare([file]);
    } catch (error) {
      refused++;
      const { reason = `not of the catalog: ${String((error as Error).stack)}` } = error as {
        reason?: string;
      };
      expect(reason).toMatch(
        /^(UTF8_INVALID|JSONL_LINE_INVALID|FIELD_MISSING|PARQUET_INVALID|PARQUET_TOO_LARGE|DATASET_EMPTY)$/,
      );
      expect((error as Error).message.length).toBeLessThan(1000);
    }
  }
  expect(refused).toBeGreaterThan(100);
});
