import { readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import * as zlib from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { Dataset, prepareDataset, type PrepareOptions } from '@relora/engine/data';
import { dataFolder, failure, sentences } from './dataFixtures.js';

const { path, folder } = dataFolder();
const fixtures = join(import.meta.dirname, '../fixtures/files');
let outputs = 0;

interface Read {
  texts: string[];
  format: string | undefined;
  skipped: { rows: number; of: number; first: { reason: string; message: string }[] } | undefined;
}

/** Prepares a file given only by name and content; tokens are bytes, so that the texts can be read back. */
async function read(file: string, options: Partial<PrepareOptions> = {}): Promise<Read> {
  const outputFolder = join(folder, `formats-${outputs++}`);
  const { manifest, formats } = await prepareDataset(
    {
      files: [{ path: file, name: file.split('/').at(-1)!, format: 'auto', split: 'auto' }],
      outputFolder,
      tokenizer: { kind: 'bytes' },
      textField: 'text',
      heldOutShare: 0,
      seed: 1,
      ...options,
    },
    () => {},
    new AbortController().signal,
  );
  const dataset = await Dataset.open(outputFolder, { verify: true });
  const tokens = dataset.train.read(0, dataset.train.tokenCount);
  await dataset.close();
  const texts: number[][] = [[]];
  for (const token of tokens) {
    if (token === 256) texts.push([]);
    else texts.at(-1)!.push(token);
  }
  return {
    texts: texts.slice(0, -1).map((bytes) => Buffer.from(bytes).toString('utf8')),
    format: formats[0],
    skipped: manifest.skipped,
  };
}

function written(name: string, content: string | Uint8Array): string {
  writeFileSync(path(name), content);
  return path(name);
}

const three = ['one', 'two "quoted"\nlines, 🙂', 'three'];
const lines = three.map((text, id) => JSON.stringify({ id, text })).join('\n');
const list = `\ufeff ${JSON.stringify(
  three.map((text) => ({ more: [{ text: 'no, }]' }], text })),
  null,
  2,
)}\n`;
const csv = `id,text,more\r\n1,one,\r\n\r\n2,"two ""quoted""\nlines, 🙂",x\r\n3,three,"a,b"\r\n`;

describe('Parquet as Arrow writes it', () => {
  const expected = JSON.parse(readFileSync(join(fixtures, 'expected.json'), 'utf8')) as Record<
    string,
    { field: string; texts: (string | null)[] }
  >;

  it('has a fixture for each file, and the other way round', () => {
    const files = readdirSync(fixtures).filter((name) => name.endsWith('.parquet'));
    expect(files.sort()).toEqual(Object.keys(expected).sort());
  });

  it.each(Object.entries(expected))('%s gives the texts that Arrow reads', async (name, { field, texts }) => {
    const nullCount = texts.filter((text) => text === null).length;
    const { texts: got, skipped } = await read(join(fixtures, name), {
      textField: field,
      ...(nullCount > 0 ? { skipInvalid: { count: nullCount } } : {}),
    });
    expect(got).toEqual(texts.filter((text) => text !== null));
    expect(skipped?.rows ?? 0).toBe(nullCount);
  });

  it('without the column names those of the top level, and says why another cannot be read', async () => {
    const refused = async (name: string, textField: string) =>
      (await failure(read(join(fixtures, name), { textField }), 'FIELD_MISSING')).message;
    expect(await refused('list-beside-required.parquet', 'body')).toBe(
      'list-beside-required.parquet, schema: expected text in "body", got columns entities, text',
    );
    expect(await refused('nested-number-before.parquet', 'meta.text')).toContain('a column of type INT64');
    expect(await refused('structure.parquet', 'meta')).toContain('a group with text, id');
    expect(await refused('list-beside-required.parquet', 'entities.list.element.text')).toContain(
      'a list in entities.list',
    );
  });

  it('is read as prompts and completions in different depths', async () => {
    const pairFields = { prompt: 'meta.text', completion: 'text' };
    const error = await failure(
      read(join(fixtures, 'structure.parquet'), { pairFields, skipInvalid: { count: 1 } }),
      'FIELD_MISSING',
    );
    expect(error.message).toContain('expected text in "text", got a column of type INT64');
  });
});

describe('a file of any name', () => {
  it.each([
    ['lines.json', lines, 'jsonl'],
    ['lines', lines, 'jsonl'],
    ['lines.csv.jsonl', `\n \n${lines}`, 'jsonl'],
    ['list.json', list, 'json'],
    ['list.jsonl', list, 'json'],
    ['table.csv', csv, 'csv'],
    ['table.CSV', `\ufeff${csv}`, 'csv'],
    ['table.tsv', 'id\ttext\n1\tone\n2\t"two ""quoted""\nlines, 🙂"\n3\tthree\n', 'csv'],
    ['europe.csv', 'id;text\n1;one\n2;"two ""quoted""\nlines, 🙂"\n3;three', 'csv'],
  ])('is recognized by its content: %s', async (name, content, format) => {
    expect(await read(written(name, content))).toMatchObject({ texts: three, format });
    // The same file compressed, with and without the extension.
    for (const packed of [`${name}.gz`, name])
      expect(await read(written(packed, gzipSync(content)))).toMatchObject({ texts: three, format });
  });

  it('is Parquet where it begins as such', async () => {
    const content = readFileSync(join(fixtures, 'codec-snappy.parquet'));
    for (const name of ['data.bin', 'data.txt', 'train-00000-of-00001'])
      expect(await read(written(name, content))).toMatchObject({ format: 'parquet' });
    const packed = read(written('data.parquet.gz', gzipSync(content)));
    expect((await failure(packed, 'FORMAT_UNKNOWN')).message).toContain('got Parquet inside of gzip');
    await failure(read(written('not.parquet', lines)), 'PARQUET_INVALID');
  });

  it('is text where nothing else is clear, and refused where it is none', async () => {
    expect(await read(written('notes', 'Just text.'))).toMatchObject({
      texts: ['Just text.'],
      format: 'text',
    });
    expect(await read(written('poem.txt', '{"text": 1}'))).toMatchObject({ format: 'text' });
    for (const content of [
      Buffer.from([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1, 0]),
      Buffer.from([0xff, 0xd8, 0xff]),
    ])
      await failure(read(written('program', content)), 'FORMAT_UNKNOWN');
    // Known file types of other programs are named in the error, whatever their name.
    const tar = Buffer.alloc(512);
    tar.write('ustar', 257);
    const foreign: [content: Buffer, got: string][] = [
      [Buffer.from('BZh91AY&SY\0'), 'bzip2'],
      [Buffer.from('\xfd7zXZ\0', 'latin1'), 'xz'],
      [gzipSync(gzipSync('{"text":"x"}')), 'gzip inside of what was unpacked'],
      [gzipSync(tar), 'a tar archive'],
      [Buffer.from('PK\x03\x04\0'), 'a zip archive'],
      [Buffer.from('ARROW1\0\0'), 'Arrow'],
    ];
    for (const [content, got] of foreign)
      for (const name of ['data.jsonl', 'data'])
        expect((await failure(read(written(name, content)), 'FORMAT_UNKNOWN')).message).toContain(
          `got ${got}`,
        );
    expect(await read(written('ORC', 'ORC is a format.'))).toMatchObject({ format: 'text' });
  });

  it.runIf('createZstdDecompress' in zlib)('is unpacked from zstd', async () => {
    const { zstdCompressSync } = zlib as unknown as { zstdCompressSync(bytes: string): Buffer };
    expect(await read(written('lines.jsonl.zst', zstdCompressSync(lines)))).toMatchObject({ texts: three });
  });

  it.runIf(!('createZstdDecompress' in zlib))(
    'packed with zstd is refused with what is missing',
    async () => {
      const frame = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0, 0, 1, 0, 0]);
      const { message } = await failure(read(written('a.jsonl.zst', frame)), 'COMPRESSION_INVALID');
      expect(message).toContain('does not unpack zstd: send it as gzip or unpacked');
    },
  );
});

describe('a packed file', () => {
  it('is read in several members, across the borders of blocks', async () => {
    const texts = Array.from({ length: 5000 }, (_, id) => `${id} ${sentences(8, id)}`);
    const packed = [texts.slice(0, 2000), texts.slice(2000)].map((some) =>
      gzipSync(some.map((text) => `${JSON.stringify({ text })}\n`).join('')),
    );
    expect((await read(written('many.jsonl.gz', Buffer.concat(packed)))).texts).toEqual(texts);
  });

  it('that is cut or damaged is refused, one that unpacks to more than is allowed too', async () => {
    const packed = gzipSync(lines.repeat(50));
    const bad = async (content: Uint8Array, options = {}) =>
      (await failure(read(written('bad.jsonl.gz', content), options), 'COMPRESSION_INVALID')).message;
    expect(await bad(packed.subarray(0, packed.length - 9))).toContain(
      'not sound as gzip: unexpected end of file',
    );
    const damaged = Buffer.from(packed);
    damaged[damaged.length - 5]! ^= 255; // in the checksum
    expect(await bad(damaged)).toContain('not sound as gzip: incorrect data check');
    const bomb = gzipSync(`{"text":"${' '.repeat(2 ** 26)}"}`);
    expect(await bad(bomb, { limits: { unpackedBytesMax: 2 ** 20 } })).toContain(
      'it unpacks to more than 1048576 bytes',
    );
  });
});

describe('a field that is not read', () => {
  it('is not judged: NaN, bytes that are not UTF-8, whatever is inside of lists', async () => {
    const rows = [
      '{"text": "one", "score": NaN}',
      '{"score": [NaN, -Infinity, {"text": "no"}], "text": "two"}',
      '{"text": "th\\u0072ee \\"\\\\", "bad": "\xff\\"", "text2": -Infinity}',
    ];
    const content = Buffer.from(rows.join('\n'), 'latin1');
    expect((await read(written('nan.jsonl', content))).texts).toEqual(['one', 'two', 'three "\\']);
    const asList = Buffer.from(`[${rows.join(',')}]`, 'latin1');
    expect((await read(written('nan.json', asList))).texts).toEqual(['one', 'two', 'three "\\']);
    const table = Buffer.from('text,more\none,\xff\n', 'latin1');
    expect((await read(written('bytes.csv', table))).texts).toEqual(['one']);
  });

  it('that is read is: NaN, bytes that are not UTF-8, and what is no JSON at all', async () => {
    const bad = async (line: string, reason: Parameters<typeof failure>[1], options = {}) =>
      (await failure(read(written('bad.jsonl', Buffer.from(line, 'latin1')), options), reason)).message;
    expect(await bad('{"text": NaN}', 'FIELD_MISSING')).toContain('expected text in "text", got NaN');
    expect(await bad('{"a": NaN, "text": {"b": NaN}}', 'FIELD_MISSING')).toContain('got an object');
    expect(await bad('{"a": NaN, "text": "\xff"}', 'UTF8_INVALID')).toContain('line 1, byte 20');
    for (const line of [
      '{"a": NaN, "text": "x"',
      '{"a": nan, "text": "x"}',
      '{"a": NaN "text": "x"}',
      '{a: NaN}',
    ])
      await bad(line, 'JSONL_LINE_INVALID');
  });

  it('is found by its path, after a field of that very name', async () => {
    const rows =
      '{"meta": {"text": "one"}}\n{"meta.text": "two", "meta": {"text": "no"}}\n{"meta": {"text": "three"}, "x": NaN}';
    expect((await read(written('path.jsonl', rows), { textField: 'meta.text' })).texts).toEqual([
      'one',
      'two',
      'three',
    ]);
    await failure(
      read(written('path.jsonl', '{"meta": "x"}'), { textField: 'meta.length' }),
      'FIELD_MISSING',
    );
  });
});

describe('rows that cannot be read', () => {
  const rows = ['{"text":"a"}', '{"text":null}', '{"text":"b"}', 'no json', '{"text":"c"}'].join('\n');

  it('are an error with their place, by default', async () => {
    const { message } = await failure(read(written('rows.jsonl', rows)), 'FIELD_MISSING');
    expect(message).toBe('rows.jsonl, line 2 at byte 13: expected text in "text", got null');
  });

  it('are left out and reported where that is allowed, in every pass alike', async () => {
    const options = { skipInvalid: { count: 2 }, heldOutShare: 0.4 } as const;
    const { texts, skipped } = await read(written('rows.jsonl', rows), options);
    expect(texts).toHaveLength(2); // one is held out
    expect(skipped).toMatchObject({ rows: 2, of: 5 });
    expect(skipped!.first).toEqual([
      {
        reason: 'FIELD_MISSING',
        message: 'rows.jsonl, line 2 at byte 13: expected text in "text", got null',
      },
      { reason: 'JSONL_LINE_INVALID', message: expect.stringContaining('rows.jsonl, line 4 at byte 40') },
    ]);
    expect((await read(written('rows.jsonl', rows), { skipInvalid: { share: 0.4 } })).texts).toEqual([
      'a',
      'b',
      'c',
    ]);
  });

  it('are an error where they are more than is allowed', async () => {
    for (const skipInvalid of [{ count: 1 }, { share: 0.39 }]) {
      const { message } = await failure(read(written('rows.jsonl', rows), { skipInvalid }), 'ROWS_INVALID');
      expect(message).toMatch(
        /^At most 1 rows may be skipped, 2 of [45] are not valid; the first: rows.jsonl, line 2/,
      );
    }
  });

  it('may be lines that are too long, elements of a list and rows of CSV', async () => {
    const limits = { lineBytesMax: 30 };
    const skipInvalid = { count: 1 };
    const long = `{"text":"a"}\n{"text":"${'x'.repeat(100)}"}\n{"text":"b"}`;
    const { texts, skipped } = await read(written('long.jsonl', long), { limits, skipInvalid });
    expect(texts).toEqual(['a', 'b']);
    expect(skipped!.first[0]!.reason).toBe('LINE_TOO_LONG');
    const inList = await read(written('rows.json', '[{"text":"a"},{"text":3},{"text":"b"}]'), {
      skipInvalid,
    });
    expect(inList.texts).toEqual(['a', 'b']);
    expect(inList.skipped!.first[0]!.message).toContain(
      'rows.json, element 2 at byte 14: expected text in "text"',
    );
    const inTable = await read(written('rows.csv', 'text,n\na,1\nb\nc,3\n'), { skipInvalid });
    expect(inTable.texts).toEqual(['a', 'c']);
    expect(inTable.skipped!.first[0]!.message).toContain(
      'row 2, which ends in line 3: expected 2 columns, got 1',
    );
  });
});

describe('a malformed file', () => {
  it('is refused with the place', async () => {
    const json = async (content: string) =>
      (await failure(read(written('bad.json', content)), 'JSON_INVALID')).message;
    expect(await json('[{"text":"a"},]')).toContain('element 2 at byte 14: expected an element, got none');
    expect(await json('[{"text":"a"}')).toContain('expected the end of the list, got the end of the file');
    expect(await json('[{"text":"a"}] x')).toContain('byte 15: expected nothing after the list, got "x"');
    expect(await json('[{"text":"a"} {"text":"b"}]')).toContain(
      'element 1 at byte 1: expected a JSON object',
    );
    const table = async (content: string) =>
      (await failure(read(written('bad.csv', content)), 'CSV_INVALID')).message;
    expect(await table('text\n"a"b\n')).toContain('bad.csv, row 1: ');
    expect(await table('text\n"a')).toContain('bad.csv, row 1: ');
    expect(
      (await failure(read(written('twice.csv', 'text,text\n1,2\n')), 'FIELD_MISSING')).message,
    ).toContain('got 2 columns of that name');
    expect((await failure(read(written('bad.csv', 'a,b\n1,2\n')), 'FIELD_MISSING')).message).toBe(
      'bad.csv, the first row: expected text in "text", got columns a, b',
    );
  });
});
