import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { Tokenizer } from 'tokenizers';
import { DataError } from './dataErrors.js';
import type { TokenizerJson } from './tokenizerJson.js';

/** Encoding and decoding of a tokenizer.json by Hugging Face's library. */
export interface NativeTokenizer {
  encode(text: string): Promise<number[]>;
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
  return {
    async encode(text) {
      const encoding = await native.encode(text, null, { addSpecialTokens: false });
      return encoding.getIds();
    },
    decode: (ids) => native.decode(ids, true),
  };
}

/** Special tokens around a text, cutting, filling up and chance have no place in training data. */
function withoutExtras(json: TokenizerJson['json']): object {
  const model = 'dropout' in json.model ? { ...json.model, dropout: null } : json.model;
  return { ...json, model, post_processor: null, truncation: null, padding: null };
}

const probeTimeoutMs = 10_000;
const probeText =
  "The quick brown fox, it's 1984!\n\n\t naïve café — 日本語 🙂 <s> </s> \u0000 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/**
 * Loads and tries a tokenizer in a process of its own: some faults make the library abort the whole process or hang, and
 * no check of ours could foresee all of them. Throws DataError TOKENIZER_INVALID.
 */
export async function probeNative(text: string, signal?: AbortSignal): Promise<void> {
  const here = JSON.stringify(import.meta.url);
  const program = `import { probeHere } from ${here}; await probeHere();`;
  const child = promisify(execFile)(process.execPath, ['--input-type=module', '--eval', program], {
    timeout: probeTimeoutMs,
    killSignal: 'SIGKILL',
    signal,
  });
  // A child that ends early breaks the pipe; how it ended is told below.
  child.child.stdin?.on('error', () => {});
  child.child.stdin?.end(text);
  try {
    await child;
  } catch (error) {
    signal?.throwIfAborted();
    const { signal: killer, stderr = '' } = error as { signal?: string; stderr?: string };
    const thrown = /^(?:\w*Error)(?: \[\w+\])?: (.*)$/m.exec(stderr)?.[1];
    const ended =
      killer === 'SIGKILL'
        ? `nothing after ${probeTimeoutMs / 1000} s`
        : `a crash of its library${panicOf(stderr)}`;
    const got = thrown ?? ended;
    throw invalid('a tokenizer that encodes and decodes a line of text', got);
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
  const tokenizer = loadNative(checkTokenizerJson(await text(process.stdin)));
  await tokenizer.decode(await tokenizer.encode(probeText));
}

function invalid(expected: string, got: string): DataError {
  return new DataError('TOKENIZER_INVALID', { file: 'tokenizer.json', where: 'loading', expected, got });
}
