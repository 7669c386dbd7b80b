import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect } from 'vitest';
import {
  DataError,
  prepareDataset,
  type DataErrorReason,
  type PrepareOptions,
  type SourceFile,
} from '@relora/engine/data';

/** A folder that is deleted after the test file, with helpers for tests of data. */
export function dataFolder() {
  const folder = mkdtempSync(join(tmpdir(), 'relora-data-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  let outputs = 0;
  return {
    folder,
    path: (name: string) => join(folder, name),
    /** Writes a source file. */
    source(
      name: string,
      content: string | Uint8Array,
      format: SourceFile['format'],
      split: SourceFile['split'] = 'auto',
    ): SourceFile {
      const path = join(folder, name);
      writeFileSync(path, content);
      return { path, name, format, split };
    },
    /** Prepares files, by default as bytes and without a held-out part; returns the folder. */
    async prepare(
      files: SourceFile[],
      options: Partial<PrepareOptions> = {},
      signal = new AbortController().signal,
    ): Promise<string> {
      const outputFolder = join(folder, `prepared-${outputs++}`);
      const defaults = { tokenizer: { kind: 'bytes' as const }, textField: 'text', heldOutShare: 0, seed: 1 };
      await prepareDataset({ ...defaults, ...options, files, outputFolder }, () => {}, signal);
      return outputFolder;
    },
  };
}

/** The error of a rejected promise, which must be a DataError with this reason. */
export async function failure(promise: Promise<unknown>, reason: DataErrorReason): Promise<DataError> {
  const error = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  if (!(error instanceof DataError))
    throw new Error(`Expected ${reason}, got ${String(error)}`, { cause: error });
  expect(error.reason).toBe(reason);
  return error;
}

/** Corrupts content: some bytes changed, removed, doubled or replaced by junk; the same number gives the same result. */
export function mutated(content: Uint8Array, number: number): Buffer {
  const random = randomNumbers(number);
  const below = (limit: number) => Math.floor(random() * limit);
  let bytes = Buffer.from(content);
  for (let change = 0; change <= below(3); change++) {
    const at = below(bytes.length);
    const kind = below(5);
    if (kind === 0) bytes = bytes.subarray(0, at);
    else if (kind === 1) bytes[at] = below(256);
    else if (kind === 2) bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(Math.max(0, at - 8))]);
    else if (kind === 3) bytes[at] = bytes[at]! ^ (1 << below(8));
    else
      bytes = Buffer.concat([
        bytes.subarray(0, at),
        Buffer.from([0xff, 0xff, 0xff, 0x7f]),
        bytes.subarray(at + 4),
      ]);
    if (bytes.length === 0) return bytes;
  }
  return bytes;
}

/** Meaningless English: words of a small vocabulary, one sentence per line. */
export function sentences(count: number, seed = 7): string {
  const words =
    'the a river stone light under over runs stands because many small old new people water house and of it is'.split(
      ' ',
    );
  const random = randomNumbers(seed);
  const sentence = () =>
    Array.from(
      { length: 6 + Math.floor(8 * random()) },
      () => words[Math.floor(words.length * random())],
    ).join(' ');
  return Array.from({ length: count }, () => `${sentence()}.\n`).join('');
}

/** In [0, 1): splitmix32, only from its seed. */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  };
}
