import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { Tokenizer } from 'tokenizers';
import { DataError } from './dataErrors.js';
import type { CutTokens } from './tokenizer.js';
import type { TokenizerJson } from './tokenizerJson.js';

/** Encoding and decoding with a tokenizer.json by Hugging Face's library. */
export interface NativeTokenizer {
  encode(text: string): Promise<number[]>;
  encodeWithCuts(text: string): Promise<CutTokens>;
  decode(ids: number[]): Promise<string>;
}

/** Loads what `checkTokenizerJson` accepted; throws DataError TOKENIZER_INVALID. */
export function loadNative({ json, addedTokens }: TokenizerJson): NativeTokenizer {
  let native: Tokenizer;
  try {
    native = Tokenizer.fromString(JSON.stringify(withoutExtras(json)));
  } catch (error) {
    throw invalid('a tokenizer that loads', (error as Error).message);
  }
  for (const { content, id } of addedTokens) {
    const found = native.tokenToId(content);
    // The library assigns ids to added tokens itself if the file leaves a gap.
    if (found !== id)
      throw invalid(`the added token ${JSON.stringify(content)} with id ${id}`, `id ${String(found)}`);
  }
  const encode = async (text: string) => {
    try {
      return await native.encode(text, null, { addSpecialTokens: false });
    } catch (error) {
      // Without an unknown token, a model may have no token for a word.
      throw tokenizerInvalid('encoding', 'a token for every part of the text', (error as Error).message);
    }
  };
  return {
    async encode(text) {
      return (await encode(text)).getIds();
    },
    async encodeWithCuts(text) {
      const encoding = await encode(text);
      // Without a rule that divides a text into words, the whole text is one word: then cuts are between tokens.
      const words = (json.pre_tokenizer ?? null) === null ? null : encoding.getWordIds();
      return { ids: encoding.getIds(), ...cutsOf(text, encoding.getOffsets(), words) };
    },
    decode: (ids) => native.decode(ids, true),
  };
}

/** Where words begin. The library counts code points, some of which are two UTF-16 units. */
function cutsOf(
  text: string,
  offsets: readonly (readonly number[])[],
  words: readonly (number | null | undefined)[] | null,
): Pick<CutTokens, 'places' | 'counts'> {
  const [places, counts]: [number[], number[]] = [[], []];
  let [characters, units] = [0, 0];
  let end = 0;
  for (const [index, [start = 0, stop = 0]] of offsets.entries()) {
    const isWord = words === null || index === 0 || words[index] !== words[index - 1];
    // Byte tokens of one character all have its offsets; a prefix added to the text has none.
    if (isWord && start >= end && (index === 0 || start > offsets[index - 1]![0]!)) {
      for (; characters < start; characters++) units += text.codePointAt(units)! > 0xffff ? 2 : 1;
      places.push(units);
      counts.push(index);
    }
    end = Math.max(end, stop);
  }
  return { places, counts };
}

/** Without special tokens around a text, truncation, padding and dropout, which training data must not have. */
function withoutExtras(json: TokenizerJson['json']): object {
  const model = 'dropout' in json.model ? { ...json.model, dropout: null } : json.model;
  return { ...json, model, post_processor: null, truncation: null, padding: null };
}

const probeText =
  "The quick brown fox, it's 1984!\n\n\t naïve café — 日本語 🙂 <s> </s> \u0000 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/** A process that hangs without using processor time is ended after this multiple of its limit. */
const waitFactor = 60;

/**
 * Loads and tests a tokenizer in a separate process: some inputs make the library abort the whole process or hang, and no check of ours
 * could cover all of them. The limit is on processor time, since wall time depends on the machine's load. Throws DataError
 * TOKENIZER_INVALID or TOKENIZER_TIMED_OUT.
 */
export async function probeNative(text: string, cpuSeconds: number, signal?: AbortSignal): Promise<void> {
  const here = JSON.stringify(import.meta.url);
  const program = `import { probeHere } from ${here}; await probeHere();`;
  const node = [process.execPath, '--input-type=module', '--eval', program];
  // The system's limit counts all threads and works even if the code never returns.
  const limited = ['-c', 'ulimit -t "$0" && exec "$@"', String(Math.ceil(cpuSeconds)), ...node];
  const child = promisify(execFile)('/bin/sh', limited, {
    timeout: waitFactor * cpuSeconds * 1000,
    killSignal: 'SIGKILL',
    signal,
  });
  // If the child ends early the pipe breaks; how it ended is reported below.
  child.child.stdin?.on('error', () => {});
  child.child.stdin?.end(text);
  try {
    await child;
  } catch (error) {
    signal?.throwIfAborted();
    const { signal: killer, stderr = '' } = error as { signal?: string; stderr?: string };
    if (killer === 'SIGXCPU' || killer === 'SIGKILL')
      throw new DataError('TOKENIZER_TIMED_OUT', { file: 'tokenizer.json', cpuSeconds });
    const thrown = /^(?:\w*Error)(?: \[\w+\])?: (.*)$/m.exec(stderr)?.[1];
    throw invalid(
      'a tokenizer that encodes and decodes a line of text',
      thrown ?? `a crash of its library${panicOf(stderr)}`,
    );
  }
}

function panicOf(stderr: string): string {
  const line = stderr.split('\n').find((text) => text.includes('rror'));
  return line === undefined ? '' : ` (${line.slice(0, 160)})`;
}

/** Runs in the process of `probeNative`. */
export async function probeHere(): Promise<void> {
  const { text } = await import('node:stream/consumers');
  const { checkTokenizerJson } = await import('./tokenizerJson.js');
  const tokenizer = loadNative(checkTokenizerJson(await text(process.stdin), 'anyone'));
  await tokenizer.decode(await tokenizer.encode(probeText));
}

function invalid(expected: string, got: string): DataError {
  return tokenizerInvalid('loading', expected, got);
}

function tokenizerInvalid(where: string, expected: string, got: string): DataError {
  return new DataError('TOKENIZER_INVALID', { file: 'tokenizer.json', where, expected, got });
}
