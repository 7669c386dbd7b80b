import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import {
  appendFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { prepareDataset, type PrepareOptions, type SourceFile } from '@relora/engine/data';
import { byteLevelTokenizerJson } from '../../engine/dist/data/trainBpe.js';
import { dataFolder, failure, sentences } from './dataFixtures.js';

const { source, prepare, path } = dataFolder();
/** So small that a text of two mebibytes has several blocks. */
const blocks = { blockBytesMax: 1 << 20 };
const child = fileURLToPath(new URL('./prepareInParts.mjs', import.meta.url));

/** Longer than a block, so that several threads share one text. */
const longText = sentences(48_000, 3);
/** With words across the end of a block that are longer than a block's lead: the lead does not show where they begin. */
const longWords = [
  longText.slice(0, 2 ** 20 - 100_000),
  'ab'.repeat(100_000),
  longText.slice(0, 2 ** 20 - 250_000),
  '\n'.repeat(400_000),
  'the end',
].join('');
const lines = (count: number, seed: number) =>
  sentences(count, seed)
    .split('\n')
    .filter((text) => text !== '')
    .map((text, index) =>
      JSON.stringify({ text: index % 7 === 0 ? 'the same again' : `${index} ${text} é🙂` }),
    )
    .join('\n');

/** Words as GPT-2 splits them, and words that our own encoder does not support. */
const [byteLevel, split] = (() => {
  const merges: [string, string][] = [
    ['Ġ', 't'],
    ['h', 'e'],
    ['Ġt', 'he'],
    ['a', 'b'],
    ['ab', 'ab'],
    ['Ċ', 'Ċ'],
  ];
  const json = JSON.parse(byteLevelTokenizerJson(merges)) as object;
  const Regex = '[^\\r\\n\\p{L}\\p{N}]?\\p{L}{1,9}|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s+';
  const pretokenizers = [
    { type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false },
    { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
  ];
  return [json, { ...json, pre_tokenizer: { type: 'Sequence', pretokenizers } }].map((each) => ({
    kind: 'huggingFace' as const,
    tokenizerJson: JSON.stringify(each),
  })) as [PrepareOptions['tokenizer'], PrepareOptions['tokenizer']];
})();

/** Name and SHA-256 of every file of a preparation. */
const contentOf = (folder: string) =>
  Object.fromEntries(
    readdirSync(folder).map((name) => [
      name,
      createHash('sha256')
        .update(readFileSync(join(folder, name)))
        .digest('hex'),
    ]),
  );

function mixedFiles(): SourceFile[] {
  return [
    source('few.jsonl', lines(300, 1), 'jsonl'),
    source('long.txt', longText, 'text'),
    source('empty.txt', '', 'text'),
    source('held.jsonl', lines(40, 6), 'jsonl', 'heldOut'),
    source('many.jsonl', lines(9000, 2), 'jsonl'),
    source('table.csv', table(2000, 9), 'csv'),
  ];
}

/** Rows of CSV with three lines each. */
function table(count: number, seed: number): string {
  const rows = sentences(3 * count, seed).match(/(?:.+\n){3}/g)!;
  return ['text', ...rows.map((row) => `"${row}"`)].join('\n');
}

describe('preparation with several threads', () => {
  it.each([
    ['words as GPT-2', byteLevel, [2, 3]],
    // The package that encodes these is slow.
    ['words of another kind', split, [3]],
  ])('writes the same bytes as with one, with %s', async (_, tokenizer, threadCounts) => {
    const options = { tokenizer, heldOutShare: 0.1, limits: { ...blocks, shardBytesMax: 1 << 20 } };
    const files = mixedFiles();
    const sequential = await prepare(files, options);
    const expected = contentOf(sequential);
    expect(readFileSync(join(sequential, 'manifest.json'), 'utf8')).toMatch(/"duplicates": [1-9]/);
    for (const threads of threadCounts)
      expect(contentOf(await prepare(files, { ...options, threads }))).toEqual(expected);
  });

  it('does so where the beginning of a word lies blocks before its end', async () => {
    const files = [source('words.txt', longWords, 'text')];
    const options = { tokenizer: byteLevel, limits: blocks };
    const expected = contentOf(await prepare(files, options));
    expect(contentOf(await prepare(files, { ...options, threads: 2 }))).toEqual(expected);
  });

  it('does so for prompts with completions', async () => {
    const pairs = Array.from({ length: 30_000 }, (_, i) =>
      JSON.stringify({ ask: `What is ${i}?`, say: `It is ${i}.` }),
    );
    const options = {
      tokenizer: byteLevel,
      pairFields: { prompt: 'ask', completion: 'say' },
      limits: { blockBytesMax: 1 << 16, shardBytesMax: 100_001 },
    };
    const files = [source('pairs.jsonl', pairs.join('\n'), 'jsonl')];
    const expected = contentOf(await prepare(files, options));
    expect(contentOf(await prepare(files, { ...options, threads: 2 }))).toEqual(expected);
  });

  it('fails with what fails with one', async () => {
    const files = [
      source('good.jsonl', lines(9000, 1), 'jsonl'),
      source('bad.jsonl', '{"text":"a"}\n{', 'jsonl'),
    ];
    const error = await failure(prepare(files, { tokenizer: byteLevel, threads: 2 }), 'JSONL_LINE_INVALID');
    expect(error.message).toContain('bad.jsonl');
  });
});

describe('files that are read side by side', () => {
  const spoiled = (seed: number, every: number) =>
    lines(400, seed)
      .split('\n')
      .map((line, index) => (index % every === 5 ? '{"text": 7}' : line))
      .join('\n');
  const files = () => [
    source('one.jsonl', spoiled(1, 40), 'jsonl'),
    source('two.jsonl', spoiled(2, 100), 'jsonl'),
    source('three.jsonl', spoiled(3, 30), 'jsonl'),
  ];
  const options = { tokenizer: byteLevel, heldOutShare: 0.2 };

  it('leave out and report the rows that one after the other would', async () => {
    const skipInvalid = { count: 40 };
    const expected = contentOf(await prepare(files(), { ...options, skipInvalid }));
    const found = await prepare(files(), { ...options, skipInvalid, threads: 3 });
    expect(contentOf(found)).toEqual(expected);
    expect(readFileSync(join(found, 'manifest.json'), 'utf8')).toMatch(/"rows": 28/);
  });

  it.each([{ count: 12 }, { count: 20 }, { share: 0.01 }])(
    'are refused at the row where one after the other would be: %o',
    async (skipInvalid) => {
      const { message } = await failure(prepare(files(), { ...options, skipInvalid }), 'ROWS_INVALID');
      const apart = await failure(prepare(files(), { ...options, skipInvalid, threads: 3 }), 'ROWS_INVALID');
      expect(apart.message).toBe(message);
    },
  );

  it('of which one is changed or missing are refused by its name', async () => {
    const all = files();
    rmSync(all[1]!.path);
    const error = await failure(prepare(all, { ...options, threads: 3 }), 'FIELD_MISSING');
    expect(error.message).toContain('one.jsonl');
    const rest = await failure(
      prepare(all, { ...options, threads: 3, skipInvalid: { count: 99 } }),
      'FILE_UNREADABLE',
    );
    expect(rest.message).toContain('two.jsonl');
  });
});

describe('a large file of lines that is read in parts', () => {
  const limits = { ...blocks, filePartBytes: 1000 };
  const plain = { tokenizer: byteLevel, heldOutShare: 0.2 };
  const options = { ...plain, limits };
  const both = async (file: () => SourceFile, more: Partial<PrepareOptions> = {}) => ({
    whole: await prepare([file()], { ...plain, ...more }),
    parts: await prepare([file()], { ...options, ...more, threads: 3 }),
  });

  it.each([
    ['with a mark before it, lines longer than a part and blank ones', '\ufeff', '\n'],
    ['with line ends of Windows', '', '\r\n'],
  ])('is what it is as a whole: %s', async (_, mark, end) => {
    const rows = lines(300, 4).split('\n');
    rows.splice(7, 0, JSON.stringify({ text: 'long '.repeat(1700) }), '', ' ', JSON.stringify({ text: '' }));
    rows.push(JSON.stringify({ text: '\ufeffa mark that is text' }));
    const text = mark + rows.join(end);
    const { whole, parts } = await both(() => source('large.jsonl', text, 'auto'));
    expect(contentOf(parts)).toEqual(contentOf(whole));
  });

  it.each([999, 1000, 1001, 1002])(
    'is so with a line that ends at byte %i, where a part does',
    async (at) => {
      const first = JSON.stringify({ text: 'x'.repeat(at - 12) });
      expect(first.length + 1).toBe(at);
      const text = [first, ...lines(60, 5).split('\n'), ''].join('\n');
      const { whole, parts } = await both(() => source('large.jsonl', text, 'jsonl'));
      expect(contentOf(parts)).toEqual(contentOf(whole));
    },
  );

  it('names the rows that are left out by the lines of the file', async () => {
    const rows = lines(400, 6).split('\n');
    for (const at of [3, 50, 51, 200, 330]) rows[at] = '{"text": 7}';
    const { whole, parts } = await both(() => source('large.jsonl', rows.join('\n'), 'jsonl'), {
      skipInvalid: { count: 5 },
    });
    expect(contentOf(parts)).toEqual(contentOf(whole));
    expect(readFileSync(join(parts, 'manifest.json'), 'utf8')).toContain('line 331 at byte');
  });

  it.each([{ count: 4 }, { share: 0.01 }, undefined])(
    'is refused for what it is refused for as a whole: %o',
    async (skipInvalid) => {
      const rows = lines(400, 6).split('\n');
      for (const at of [3, 50, 51, 200, 330]) rows[at] = '{"text": 7}';
      const file = () => source('large.jsonl', rows.join('\n'), 'jsonl');
      const reason = skipInvalid === undefined ? 'FIELD_MISSING' : 'ROWS_INVALID';
      const more = skipInvalid === undefined ? {} : { skipInvalid };
      const { message } = await failure(prepare([file()], { ...plain, ...more }), reason);
      const apart = await failure(prepare([file()], { ...options, ...more, threads: 3 }), reason);
      expect(apart.message).toBe(message);
    },
  );

  it('keeps the order among others, and what is held out of all', async () => {
    const files = () => [
      source('before.jsonl', lines(20, 7), 'jsonl'),
      source('large.jsonl', lines(300, 8), 'jsonl'),
      source('held.jsonl', lines(40, 9), 'jsonl', 'heldOut'),
      source('text.txt', longText.slice(0, 5000), 'text'),
      source('also.jsonl', lines(200, 8), 'jsonl'),
    ];
    const expected = contentOf(await prepare(files(), plain));
    for (const threads of [2, 4])
      expect(contentOf(await prepare(files(), { ...options, threads }))).toEqual(expected);
  });
});

describe('preparation that is killed', () => {
  const options = {
    tokenizer: byteLevel,
    heldOutShare: 0.1,
    textField: 'text',
    seed: 1,
    limits: { ...blocks, shardBytesMax: 1 << 20, filePartBytes: 50_000 },
    threads: 2,
  };

  /**
   * Runs in a process that is killed some time after its first report, or when a condition holds; returns the progress that it reported.
   */
  async function attempt(
    files: SourceFile[],
    folder: string,
    killAt: number | (() => boolean),
    more: object = {},
  ): Promise<{ shares: number[]; isDone: boolean }> {
    const all = {
      ...{ ...options, ...more, files, outputFolder: path(folder) },
      progress: { folder: path(`${folder}-progress`), everyMs: 1 },
    };
    const process_ = spawn(process.execPath, [child, JSON.stringify(all)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const shares: number[] = [];
    createInterface({ input: process_.stdout }).on('line', (line) => {
      if (shares.push(Number(line)) === 1 && typeof killAt === 'number')
        setTimeout(() => process_.kill('SIGKILL'), killAt);
    });
    const looking = setInterval(() => {
      if (typeof killAt === 'function' && killAt()) process_.kill('SIGKILL');
    }, 2);
    const [code] = (await once(process_, 'close')) as [number | null];
    clearInterval(looking);
    return { shares, isDone: code === 0 };
  }

  const isWrittenIn = (name: string) => () =>
    existsSync(path(`${name}-progress/progress.json`)) &&
    readFileSync(path(`${name}-progress/progress.json`), 'utf8').includes('"written"');

  it('continues after what is on the disk, and ends with the same bytes', async () => {
    const files = mixedFiles();
    const expected = contentOf(await prepare(files, options));
    expect(await attempt(files, 'killed', isWrittenIn('killed'))).toMatchObject({ isDone: false });
    let killMs = 1;
    const begun: number[] = [];
    for (let kills = 0; ; kills++) {
      // Times spread over the whole preparation.
      const { shares, isDone } = await attempt(files, 'killed', killMs);
      // Killed before its first report it shows nothing.
      if (shares[0] !== undefined) begun.push(shares[0]);
      if (isDone) break;
      killMs = 1 + ((killMs * 37) % 97) + 60 * kills;
    }
    expect(contentOf(path('killed'))).toEqual(expected);
    // No attempt starts before what the previous one had stored.
    expect(begun).toEqual([...begun].sort((a, b) => a - b));
    expect(begun[0]).toBeGreaterThan(0.2);
  });

  it('begins again where files or options are others, or where what was written is not what it was', async () => {
    const files = mixedFiles();
    expect(await attempt(files, 'changed', isWrittenIn('changed'))).toMatchObject({ isDone: false });
    // Loses bytes of a shard, as a disk might.
    truncateSync(join(path('changed'), 'train-00000.bin'), 10);
    expect(await attempt(files, 'changed', 1e6)).toMatchObject({ isDone: true });
    expect(contentOf(path('changed'))).toEqual(contentOf(await prepare(files, options)));

    expect(await attempt(files, 'changed', 1e6, { seed: 2 })).toMatchObject({ isDone: true });
    expect(contentOf(path('changed'))).toEqual(contentOf(await prepare(files, { ...options, seed: 2 })));

    appendFileSync(files[0]!.path, '\n{"text":"one more"}');
    expect(await attempt(files, 'changed', 1e6, { seed: 2 })).toMatchObject({ isDone: true });
    expect(contentOf(path('changed'))).toEqual(contentOf(await prepare(files, { ...options, seed: 2 })));
  });

  it('that was done is not done again', async () => {
    const files = mixedFiles();
    expect(await attempt(files, 'done', 1e6)).toMatchObject({ isDone: true });
    const marker = join(path('done'), 'held-out.txt');
    writeFileSync(marker, 'changed since');
    expect(await attempt(files, 'done', 1e6)).toMatchObject({ isDone: true });
    expect(readFileSync(marker, 'utf8')).toBe('changed since');
    expect(existsSync(path('done-progress'))).toBe(true);
  });

  it('without a folder for its progress refuses an output folder that is there', async () => {
    const outputFolder = path('there');
    await prepareDataset(
      { ...options, files: mixedFiles(), outputFolder },
      () => {},
      new AbortController().signal,
    );
    const again = prepareDataset(
      { ...options, files: mixedFiles(), outputFolder },
      () => {},
      new AbortController().signal,
    );
    await expect(again).rejects.toThrow('EEXIST');
  });
});
