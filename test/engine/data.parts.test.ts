import { readFileSync } from 'node:fs';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { describe, expect, it } from 'vitest';
import { DataError, type SourceFile } from '@relora/engine/data';
import { defaultLimits } from '../../engine/dist/data/dataLimits.js';
import { partsOfBytes, wholeFile } from '../../engine/dist/data/filePart.js';
import {
  firstPass,
  firstPassToJson,
  type FirstPassMark,
  type FirstPassProgress,
} from '../../engine/dist/data/firstPass.js';
import { InvalidRows, type SkipInvalid } from '../../engine/dist/data/invalidRows.js';
import { beginOfPart, filePartsOf, readPart } from '../../engine/dist/data/readSource.js';
import { dataFolder, sentences } from './dataFixtures.js';

const { source } = dataFolder();

const never: FirstPassProgress = { reading: undefined, isDue: false, set: () => Promise.resolve() };
const signal = new AbortController().signal;
const optionsWith = (filePartBytes: number) => ({
  ...{ fields: ['text'] as const, chat: null, chatOptions: null, heldOutShare: 0.2, seed: 3 },
  limits: { ...defaultLimits, filePartBytes },
});

interface How {
  filePartBytes?: number;
  threads?: number;
  skipInvalid?: SkipInvalid | null;
  progress?: FirstPassProgress;
}

/** The result or the error of a first pass; by default as a whole and with one thread. */
async function find(
  files: SourceFile[],
  { filePartBytes = 2 ** 40, threads = 1, skipInvalid = null, progress = never }: How = {},
): Promise<string> {
  const options = optionsWith(filePartBytes);
  try {
    const found = await firstPass(files, options, skipInvalid, () => {}, signal, threads, progress);
    return firstPassToJson(found);
  } catch (error) {
    if (error instanceof DataError) return error.message;
    throw error;
  }
}

/** Contains everything that could be mistaken for the end of a row, or of a text. */
const texts = (count: number, seed: number) =>
  sentences(count, seed)
    .split('\n')
    .map((text, index) => {
      const more = [
        '"',
        '""',
        '\n',
        '\r\n',
        ',',
        '","',
        '\n"',
        '\\',
        '\\"',
        '}, {',
        '], [',
        ' é🙂 ',
        '\n\n',
        ';',
      ];
      return `${text.slice(0, 3 + (index % 11))}${more[index % more.length]}${text.slice(0, index % 5)}`;
    });
const quoted = (text: string) => `"${text.replaceAll('"', '""')}"`;
const table = (rows: string[], end: string, divider = ',') =>
  [['id', 'text', 'n'], ...rows.map((text, index) => [`${index}`, quoted(text), index % 3 ? '' : '""'])]
    .map((row) => row.join(divider))
    .join(end);
const list = (rows: unknown[], space?: number) =>
  JSON.stringify(
    rows.map((text, index) => ({ id: index, tags: [{ a: [1, '"'] }, ['\\'], {}], text })),
    null,
    space,
  );
const columns = (rows: unknown[], rowGroupSize: number): Buffer =>
  Buffer.from(
    parquetWriteBuffer({
      columnData: [
        { name: 'other', data: rows.map((_, index) => index) },
        { name: 'text', data: rows, type: 'STRING' },
      ],
      rowGroupSize,
    }),
  );

const sound: [what: string, file: () => SourceFile][] = [
  ['CSV', () => source('table.csv', table(texts(80, 1), '\n'), 'csv')],
  ['CSV with line ends of Windows', () => source('table.csv', `${table(texts(80, 2), '\r\n')}\r\n`, 'csv')],
  ['CSV with line ends of old', () => source('table.csv', table(texts(80, 3), '\r'), 'csv')],
  [
    'CSV with a mark and blank lines',
    () => source('table.csv', `\ufeff\n${table(texts(80, 4), '\n\n\n')}`, 'csv'),
  ],
  ['CSV with semicolons', () => source('table.csv', table(texts(80, 5), '\n', ';'), 'csv')],
  ['CSV without quotation marks', () => source('table.csv', `text,n\n${'one two,3\n'.repeat(60)}`, 'csv')],
  ['a list in JSON', () => source('list.json', list(texts(60, 6)), 'json')],
  [
    'a list in JSON with a mark and spaces',
    () => source('list.json', `\ufeff ${list(texts(40, 7), 1)}  \n`, 'json'),
  ],
  [
    'lines of JSON',
    () =>
      source(
        'lines.jsonl',
        texts(80, 8)
          .map((text) => JSON.stringify({ text }))
          .join('\n'),
        'jsonl',
      ),
  ],
];

describe('a file that is read in parts', () => {
  it.each(sound)('is what it is as a whole, wherever it is cut: %s', async (_, file) => {
    const files = [file()];
    const expected = await find(files);
    expect(expected).toMatch(/^\{"sources"/);
    for (let filePartBytes = 3; filePartBytes < 300; filePartBytes += 1 + (filePartBytes >> 4))
      expect(await find(files, { filePartBytes })).toBe(expected);
  });

  it.each(sound)(
    'begins its parts where those before them end, without having read them: %s',
    async (_, file) => {
      const one = file();
      const format = one.format as Exclude<SourceFile['format'], 'auto'>;
      const size = readFileSync(one.path).length;
      for (const filePartBytes of [300, 311, 400, 777]) {
        const options = optionsWith(filePartBytes);
        let { place } = wholeFile();
        for (const part of partsOfBytes(size, filePartBytes)) {
          // In a list the last part may contain only the end of an element.
          if (place.at < part.to && part.from < size - 100)
            expect(await beginOfPart(one, format, part, options)).toBe(place.at);
          const order = { format, part, place };
          ({ place } = await readPart(one, order, options, new InvalidRows(null), null, () => {}, signal));
        }
      }
    },
  );

  it('of any format is that with several threads, among others', async () => {
    const files = [
      ...sound.map(([, file], index) => {
        const { path, name, format } = file();
        return source(`${index} ${name}`, readFileSync(path), format);
      }),
      source('rows.parquet', columns(texts(300, 9), 20), 'parquet'),
      source('held.csv', table(texts(30, 10), '\n'), 'csv', 'heldOut'),
    ];
    for (const file of files)
      expect((await filePartsOf(file, optionsWith(500)))?.parts.length, file.name).toBeGreaterThan(1);
    const expected = await find(files);
    for (const threads of [1, 2, 3])
      expect(await find(files, { threads, filePartBytes: 500 })).toBe(expected);
  });

  it.each([
    // Every mark has a comma or line end on both sides: nothing shows whether it opens or closes.
    ['CSV', () => source('lines.csv', `text,n\n${'"\na,b\nc\n",1\n'.repeat(60)}`, 'csv')],
    [
      'CSV with rows longer than parts',
      () => source('long.csv', table([texts(400, 1).join(''), ...texts(30, 2)], '\n'), 'csv'),
    ],
    [
      'elements of a list longer than parts',
      () => source('long.json', list([...texts(9, 1), texts(400, 1).join('')], 1), 'json'),
    ],
    [
      'a list that ends long before the file',
      () => source('end.json', `${list(texts(20, 3))}${' '.repeat(3000)}`, 'json'),
    ],
  ])('is so where the beginning of a part cannot be seen: %s', async (_, file) => {
    const files = [file()];
    const expected = await find(files);
    expect(expected).toMatch(/^\{"sources"/);
    for (const threads of [1, 3]) expect(await find(files, { threads, filePartBytes: 120 })).toBe(expected);
  });

  const spoiled = texts(200, 11).map((text, index) => (index % 37 === 5 ? null : text));
  it.each([
    [
      'rows of CSV',
      () => source('rows.csv', table(texts(200, 11), '\r\n').replaceAll(/\n(\d*5),/g, '\n$1,x,'), 'csv'),
      'ends in line',
    ],
    [
      'elements of a list',
      () => source('rows.json', list(texts(200, 11)).replaceAll(/"text":"the/g, '"text":7,"was":"'), 'json'),
      'at byte',
    ],
    ['rows of Parquet', () => source('rows.parquet', columns(spoiled, 16), 'parquet'), 'row 154'],
  ])('names what it leaves out by its place in the whole: %s', async (_, file, place) => {
    const files = [file()];
    for (const skipInvalid of [{ count: 60 }, { count: 3 }, { share: 0.001 }, null]) {
      const expected = await find(files, { skipInvalid });
      if (skipInvalid?.count === 60) expect(expected).toContain(place);
      for (const threads of [1, 3])
        expect(await find(files, { skipInvalid, threads, filePartBytes: 1000 })).toBe(expected);
    }
  });

  const broken = (from: string, to: string, text: string) => {
    const at = text.indexOf(from, Math.floor(text.length / 2));
    return text.slice(0, at) + to + text.slice(at + from.length);
  };
  it.each([
    [
      'a mark in a text without marks',
      () => source('bad.csv', broken(',', ',a"b', table(texts(200, 12), '\n')), 'csv'),
    ],
    [
      'a mark that closes nothing',
      () => source('bad.csv', broken('"', 'x', table(texts(200, 12), '\n')), 'csv'),
    ],
    ['a mark without an end', () => source('bad.csv', `${table(texts(200, 12), '\n')}\n7,"`, 'csv')],
    [
      'bytes that are not UTF-8',
      () =>
        source(
          'bad.csv',
          Buffer.from(table(texts(200, 12), '\n').replace('🙂', '\ufffd').replace('é', 'e'), 'latin1'),
          'csv',
        ),
    ],
    [
      'a column that is not there',
      () => source('bad.csv', table(texts(200, 12), '\n').replace('text', 'body'), 'csv'),
    ],
    [
      'no comma between elements',
      () => source('bad.json', broken('},{"id"', '}{"id"', list(texts(200, 12))), 'json'),
    ],
    [
      'nothing between commas',
      () => source('bad.json', broken('},{"id"', '},,{"id"', list(texts(200, 12))), 'json'),
    ],
    ['nothing before the end', () => source('bad.json', `${list(texts(200, 12)).slice(0, -1)},]`, 'json')],
    ['a list without an end', () => source('bad.json', list(texts(200, 12)).slice(0, -1), 'json')],
    [
      'a list without an element and an end',
      () => source('bad.json', `${list(texts(200, 12)).slice(0, -1)},`, 'json'),
    ],
    [
      'something behind the list',
      () => source('bad.json', `${list(texts(200, 12))}${' '.repeat(2000)}x`, 'json'),
    ],
    [
      'a bracket too many',
      () => source('bad.json', broken('},{"id"', '}},{"id"', list(texts(200, 12))), 'json'),
    ],
    [
      'Parquet that is cut',
      () => source('bad.parquet', columns(texts(500, 12), 20).subarray(0, -1), 'parquet'),
    ],
    [
      'Parquet with a damaged group',
      () => {
        const bytes = columns(texts(500, 12), 20);
        const middle = bytes.length >> 1;
        bytes.fill(0xff, middle, middle + 60);
        return source('bad.parquet', bytes, 'parquet');
      },
    ],
  ])('is refused for what it is refused for as a whole: %s', async (_, file) => {
    const files = [source('good.csv', table(texts(30, 13), '\n'), 'csv'), file()];
    const expected = await find(files);
    expect(expected).toContain(`bad.${files[1]!.format}`);
    for (const threads of [1, 3]) expect(await find(files, { threads, filePartBytes: 600 })).toBe(expected);
  });
});

describe('a first pass that is ended at each of its marks', () => {
  const large: [what: string, file: () => SourceFile][] = [
    [
      'lines',
      () =>
        source(
          'large.jsonl',
          texts(600, 21)
            .map((text, index) => JSON.stringify({ text: index % 300 === 50 ? 7 : text }))
            .join('\n'),
          'jsonl',
        ),
    ],
    ['CSV', () => source('large.csv', table(texts(600, 22), '\n').replace('\n500,', '\n500,x,'), 'csv')],
    ['a list', () => source('large.json', list([...texts(200, 23), 7, ...texts(100, 24)]), 'json')],
    [
      'Parquet',
      () =>
        source(
          'large.parquet',
          columns(
            texts(600, 24).map((text, index) => (index === 500 ? null : text)),
            50,
          ),
          'parquet',
        ),
    ],
  ];
  it.each(large.flatMap(([what, file]) => [1, 3].map((threads) => [what, threads, file] as const)))(
    'finds the same, and reads nothing twice that a mark has: %s with %i threads',
    async (_, threads, file) => {
      const files = [
        source('before.csv', table(texts(60, 25), '\n'), 'csv'),
        source('held.csv', table(texts(30, 26), '\n'), 'csv', 'heldOut'),
        file(),
        source('last.txt', sentences(200, 27), 'text'),
      ];
      const skipInvalid = { count: 9 };
      const expected = await find(files, { skipInvalid });
      expect(expected).toContain('"skipped":{"rows":');

      const places: string[] = [];
      let reading: FirstPassMark | undefined;
      let found: string | undefined;
      while (found === undefined) {
        const ended = new Error('ended at a mark');
        const set = (mark: { reading: FirstPassMark }) => {
          // As read back from disk.
          reading = JSON.parse(JSON.stringify(mark.reading)) as FirstPassMark;
          places.push(`${reading.sources.length} ${reading.parts.count}`);
          return Promise.reject(ended);
        };
        const progress = { reading, isDue: true, set };
        found = await find(files, { skipInvalid, threads, filePartBytes: 4000, progress }).catch(
          (error: unknown) => {
            if (error !== ended) throw error;
            return undefined;
          },
        );
      }
      expect(found).toBe(expected);
      expect(new Set(places).size).toBe(places.length);
      expect(places.filter((place) => place.startsWith('2 ')).length).toBeGreaterThan(3);
    },
  );
});
