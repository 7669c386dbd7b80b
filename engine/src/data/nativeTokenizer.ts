import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { Tokenizer } from 'tokenizers';
import { DataError } from './dataErrors.js';
import type { CutTokens } from './tokenizer.js';
import type { TokenizerJson } from './tokenizerJson.js';

/** Encoding and decoding of a tokenizer.json by Hugging Face's library. */
export interface NativeTokenizer {
  encode(text: string): Promise<number[]>;
  encodeWithCuts(text: string): Promise<CutTokens>;
  decode(ids: number[]): Promise<string>;
}

/** Loads what `checkTokenizerJson` passed; throws DataError TOKENIZER_INVALID. */
export function loadNative({ json, addedTokens }: TokenizerJson): NativeTokenizer {
  let native: Tokenizer;
  try {
    native = Tokenizer.fromString(JSON.stringify(withoutExtras(json)));
  } catch (error) {
    throw invalid('a tokenizer that loads', (error as Error).message);
  }
  for (const { content, id } of addedTokens) {
    const found = native.tokenToId(content);
    // The library numbers added tokens itself where the file leaves a gap.
    if (found !== id)
      throw invalid(`the added token ${JSON.stringify(content)} with id ${id}`, `id ${String(found)}`);
  }
  const encode = async (text: string) => {
    try {
      return await native.encode(text, null, { addSpecialTokens: false });
    } catch (error) {
      // Without a token for what it does not know, a model may have nothing for a word.
      throw tokenizerInvalid('encoding', 'a token for every part of the text', (error as Error).message);
    }
  };
  return {
    async encode(text) {
      return (await encode(text)).getIds();
    },
    async encodeWithCuts(text) {
      const encoding = await encode(text);
      // Without a rule that divides a text into words, all of it is one: then tokens are what it is divided into.
      const words = (json.pre_tokenizer ?? null) === null ? null : encoding.getWordIds();
      return { ids: encoding.getIds(), ...cutsOf(text, encoding.getOffsets(), words) };
    },
    decode: (ids) => native.decode(ids, true),
  };
}

/** Where words begin. The library counts characters, of which some are two of a string's units. */
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
    // Tokens of one character's bytes have its place, all of them; what is put before a text has none.
    if (isWord && start >= end && (index === 0 || start > offsets[index - 1]![0]!)) {
      for (; characters < start; characters++) units += text.codePointAt(units)! > 0xffff ? 2 : 1;
      places.push(units);
      counts.push(index);
    }
    end = Math.max(end, stop);
  }
  return { places, counts };
}

/** Special tokens around a text, cutting, filling up and chance have no place in training data. */
function withoutExtras(json: TokenizerJson['json']): object {
  const model = 'dropout' in json.model ? { ...json.model, dropout: null } : json.model;
  return { ...json, model, post_processor: null, truncation: null, padding: null };
}

const probeText =
  "The quick brown fox, it's 1984!\n\n\t naïve café — 日本語 🙂 <s> </s> \u0000 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/** A process that waits, for whatever, is ended after so many times the processor time that it may take. */
const waitFactor = 60;

/**
 * Loads and tries a tokenizer in a process of its own: some faults make the library abort the whole process or hang, and
 * no check of ours could foresee all of them. What is limited is processor time, since a busy machine says nothing about a
 * file. Throws DataError TOKENIZER_INVALID or TOKENIZER_TIMED_OUT.
 */
export async function probeNative(text: string, cpuSeconds: number, signal?: AbortSignal): Promise<void> {
  const here = JSON.stringify(import.meta.url);
  const program = `import { probeHere } from ${here}; await probeHere();`;
  const node = [process.execPath, '--input-type=module', '--eval', program];
  // The limit of the system counts all threads and cannot be missed by code that never returns.
  const limited = ['-c', 'ulimit -t "$0" && exec "$@"', String(Math.ceil(cpuSeconds)), ...node];
  const child = promisify(execFile)('/bin/sh', limited, {
    timeout: waitFactor * cpuSeconds * 1000,
    killSignal: 'SIGKILL',
    signal,
  });
  // A child that ends early breaks the pipe; how it ended is reported below.
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

/** What the process of `probeNative` does. */
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
