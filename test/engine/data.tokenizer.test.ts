import { Tokenizer as Library } from 'tokenizers';
import { beforeAll, describe, expect, it } from 'vitest';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  bytesTokenizer,
  endOfTextToken,
  jsonTokenizer,
  TextStream,
  tokenizerFile,
  type Tokenizer,
} from '@relora/engine/data';
import { dataFolder, failure, mutated, sentences } from './dataFixtures.js';

const { source, prepare } = dataFolder();
const odd =
  "It's we'LL 12,345½ naïve 日本語🙂 \u0085x\u00a0 y\ufeffz \u3000\r\n\n\t  end   " +
  'a'.repeat(3000) +
  ' '.repeat(500) +
  'éß'.repeat(300) +
  '\0';

interface Json {
  model: { vocab: Record<string, number>; merges: unknown[]; [key: string]: unknown };
  added_tokens: Record<string, unknown>[];
  [key: string]: unknown;
}

let json: string;
/** A word-level tokenizer, which only the library supports. */
let wordJson: string;
let trained: Tokenizer;

beforeAll(async () => {
  const files = [source('text.txt', sentences(4000) + odd, 'text')];
  json = readFileSync(
    join(await prepare(files, { tokenizer: { kind: 'trainedBpe', vocabularySize: 300 } }), tokenizerFile),
    'utf8',
  );
  trained = await jsonTokenizer(json, 'trainedBpe');
  const special = (id: number, content: string) => ({
    id,
    content,
    special: true,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
  });
  wordJson = JSON.stringify({
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [special(0, '</s>'), special(1, '<unk>')],
    normalizer: { type: 'Lowercase' },
    pre_tokenizer: { type: 'Whitespace' },
    post_processor: null,
    decoder: null,
    model: {
      type: 'WordLevel',
      unk_token: '<unk>',
      vocab: { '</s>': 0, '<unk>': 1, the: 2, river: 3, stone: 4 },
    },
  });
});

/** The process started by a test. */
async function childOf(pid: number): Promise<number> {
  for (;;) {
    const [child] = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ');
    if (child) return Number(child);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

function changed(change: (json: Json) => void, from = json): string {
  const copy = JSON.parse(from) as Json;
  change(copy);
  return JSON.stringify(copy);
}

describe('a trained vocabulary', () => {
  it('has the size asked for, every byte, and the end of a text last', async () => {
    expect(trained).toMatchObject({ kind: 'trainedBpe', vocabularySize: 300, endOfTextId: 299 });
    const everyByte = Array.from({ length: 256 }, (_, byte) => byte);
    expect(everyByte.map((byte) => trained.tokenBytes(byte)![0])).toEqual(everyByte);
    expect((await trained.encode(sentences(100))).length).toBeLessThan(sentences(100).length / 1.5);
  });

  it('gives any text back', async () => {
    for (const text of [odd, sentences(50), '', ' ', '\n', '🙂'])
      expect(await trained.decode(await trained.encode(text))).toBe(text);
  });

  it('encodes as the library does with the same file', async () => {
    const library = Library.fromString(json);
    for (const text of [odd, `a${endOfTextToken}b`, sentences(500)]) {
      const expected = (await library.encode(text, null, { addSpecialTokens: false })).getIds();
      expect(Array.from(await trained.encode(text))).toEqual(expected);
      expect(await trained.decode(expected)).toBe(await library.decode(expected, true));
    }
  });

  it('encodes a word of a million letters in the time of its length', async () => {
    const ids = await trained.encode('the river '.replaceAll(' ', '').repeat(125_000));
    expect(ids.length).toBeGreaterThan(100_000);
  });
});

describe('a tokenizer.json that needs the library', () => {
  it('encodes and decodes', async () => {
    const words = await jsonTokenizer(wordJson, 'huggingFace');
    expect(words).toMatchObject({ vocabularySize: 5, endOfTextId: 0 });
    expect(Array.from(await words.encode('The River bank'))).toEqual([2, 3, 1]);
    expect(await words.decode([2, 3, 0])).toBe('the river');
    expect(words.tokenBytes(2)).toBeNull();
  });

  it('is refused with the words of the library where that cannot load it', async () => {
    const text = changed((copy) => (copy.normalizer = { type: 'Unheard' }), wordJson);
    expect((await failure(jsonTokenizer(text, 'huggingFace'), 'TOKENIZER_INVALID')).message).toMatch(
      /expected a tokenizer that loads, got .*line 1/,
    );
  });

  it('is given processor time to be tried in, and is not said to be wrong when that is over', async () => {
    const doubled = { type: 'Replace', pattern: { String: 'a' }, content: 'aa' };
    const slow = changed((copy) => {
      const normalizers = [
        ...Array<object>(14).fill(doubled),
        ...Array<object>(400).fill({ type: 'Lowercase' }),
      ];
      copy.normalizer = { type: 'Sequence', normalizers };
    }, wordJson);
    const error = await failure(jsonTokenizer(slow, 'huggingFace', { cpuSeconds: 1 }), 'TOKENIZER_TIMED_OUT');
    expect(error.message).toContain(
      'within 1 s of processor time, got nothing; RELORA_TOKENIZER_CPU_SECONDS',
    );
  });

  it('is not hurried by a machine that is busy', async () => {
    // Stopped for longer than its limit of processor time: wall time does not count.
    const trying = jsonTokenizer(wordJson, 'huggingFace', { cpuSeconds: 3 });
    const child = await childOf(process.pid);
    process.kill(child, 'SIGSTOP');
    await new Promise((resolve) => setTimeout(resolve, 4000));
    process.kill(child, 'SIGCONT');
    expect(await trying).toMatchObject({ vocabularySize: 5 });
  });

  it('is refused when it makes the library abort its process', async () => {
    const text = changed(
      (copy) => (copy.normalizer = { type: 'Precompiled', precompiled_charsmap: 'AAAA' }),
      wordJson,
    );
    expect((await failure(jsonTokenizer(text, 'huggingFace'), 'TOKENIZER_INVALID')).message).toContain(
      'a crash of its library',
    );
  });
});

describe('a malformed tokenizer.json', () => {
  const refused = async (text: string) =>
    (await failure(jsonTokenizer(text, 'huggingFace'), 'TOKENIZER_INVALID')).message;

  it('is refused with the place, what was expected and what came', async () => {
    expect(await refused('{"model"')).toContain('tokenizer.json, start: expected JSON, got ');
    expect(await refused('[]')).toBe('tokenizer.json, start: expected an object, got a list of 0');
    expect(await refused('{}')).toBe('tokenizer.json, model: expected an object, got nothing');
    expect(await refused('{"model":{"vocab":3}}')).toContain(
      'model.vocab: expected an object or a list, got 3',
    );
    expect(await refused(changed(({ model }) => (model.vocab.a = 2 ** 31)))).toContain(
      'expected a whole number below 1048576, got 2147483648',
    );
    for (const id of [-1, 0.5, null, '1'])
      expect(await refused(changed(({ model }) => (model.vocab.a = id as number)))).toContain(
        'model.vocab["a"]',
      );
    expect(await refused(changed(({ model }) => (model.vocab.a = model.vocab.b!)))).toContain(
      'an id that no other token has',
    );
    expect(await refused(changed(({ model }) => model.merges.push(['zz', 'q'])))).toContain(
      'tokens of the vocabulary, got "zz"',
    );
    expect(await refused(changed(({ model }) => model.merges.push('a')))).toContain('two tokens, got "a"');
    expect(await refused(changed(({ added_tokens: added }) => (added[0]!.id = 5)))).toContain(
      'added_tokens[0].id: expected 299',
    );
    expect(
      await refused(changed(({ added_tokens: added }) => added.push({ id: 3, content: 'new one' }))),
    ).toContain('an id that no other token has');
    expect(
      await refused(changed(({ added_tokens: added }) => added.push({ id: 900, content: '' }))),
    ).toContain('added_tokens[1].content');
    expect(await refused('[' + '['.repeat(100_000))).toContain('expected JSON');
  });

  it('without a token for the end of a text is refused', async () => {
    const message = await refused(
      changed((copy) => {
        delete copy.model.vocab[endOfTextToken];
        copy.added_tokens = [];
      }),
    );
    expect(message).toContain('a token for the end of a text, one of <|endoftext|>');
  });

  it('with a pattern that can take exponential time is refused, those in use are not', async () => {
    const withPattern = (Regex: string) =>
      changed(
        (copy) =>
          (copy.pre_tokenizer = {
            type: 'Sequence',
            pretokenizers: [
              { type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false },
              { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
            ],
          }),
      );
    for (const pattern of ['(a+)+', '(?:\\s*x)*', '((ab*c)|d){2,}', '(', ')', '[a', '(a{10}){20}']) {
      expect(await refused(withPattern(pattern))).toContain(
        `one without repeats inside of repeats, got ${JSON.stringify(pattern)}`,
      );
    }
    const inUse =
      "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    expect((await jsonTokenizer(withPattern(inUse), 'huggingFace')).vocabularySize).toBe(300);
  });

  it('changed at random loads or is refused, and never ends the process', async () => {
    let refusedCount = 0;
    for (let number = 0; number < 150; number++) {
      try {
        await jsonTokenizer(mutated(Buffer.from(json), number).toString('utf8'), 'huggingFace', {
          isTrusted: true,
        });
      } catch (error) {
        expect((error as { reason?: string }).reason ?? String((error as Error).stack)).toBe(
          'TOKENIZER_INVALID',
        );
        refusedCount++;
      }
    }
    expect(refusedCount).toBeGreaterThan(50);
  });
});

describe('generated tokens as a stream', () => {
  const streamed = async (tokenizer: Tokenizer, ids: ArrayLike<number>) => {
    const stream = new TextStream(tokenizer);
    const pieces: string[] = [];
    for (const id of Array.from(ids)) pieces.push(await stream.push(id));
    return [...pieces, await stream.end()];
  };

  it('come out in whole characters', async () => {
    const text = 'naïve 日本語 🙂!';
    for (const tokenizer of [bytesTokenizer(), trained]) {
      const pieces = await streamed(tokenizer, await tokenizer.encode(text));
      expect(pieces.join('')).toBe(text);
      expect(pieces.join('')).not.toContain('\ufffd');
    }
    expect(await streamed(bytesTokenizer(), Buffer.from('é'))).toEqual(['', 'é', '']);
  });

  it('end with a mark where a character is incomplete', async () => {
    expect((await streamed(bytesTokenizer(), [0x61, 0xf0, 0x9f])).join('')).toBe('a\ufffd');
  });

  it('keep the spaces between words that only the library knows', async () => {
    const words = await jsonTokenizer(wordJson, 'huggingFace');
    expect(await streamed(words, [2, 3, 4])).toEqual(['the', ' river', ' stone', '']);
  });
});

describe('a tokenizer without tokens', () => {
  it('is refused', async () => {
    const text = changed(({ model }) => (model.vocab = {}), wordJson);
    expect((await failure(jsonTokenizer(text, 'huggingFace'), 'TOKENIZER_INVALID')).message).toContain(
      'model.vocab: expected at least one token, got 0',
    );
  });
});
