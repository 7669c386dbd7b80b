import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { digestFile } from '../io/durableFile.js';
import { isDiskFault } from '../io/diskFault.js';
import type { Batch } from './batches.js';
import type { CheckedShards } from './checkedShards.js';
import { DataError } from './dataErrors.js';
import { readManifest, tokenizerFile, type DatasetManifest } from './manifest.js';
import { bytesTokenizer, jsonTokenizer, type Tokenizer } from './tokenizer.js';
import { TokenSplit } from './tokenSplit.js';

export interface HeldOutBatch extends Batch {
  /** UTF-8 bytes of text that the targets stand for, excluding targets of -1. */
  byteCount: number;
}

export interface PreviewedToken {
  id: number;
  text: string;
  /** Whether it counts towards the loss. */
  trained: boolean;
}

/** A prepared data set, open for reading. */
export class Dataset {
  private constructor(
    readonly folder: string,
    readonly manifest: DatasetManifest,
    /** SHA-256 of the manifest file, on which a run depends. */
    readonly manifestSha256: string,
    readonly tokenizer: Tokenizer,
    readonly train: TokenSplit,
    readonly heldOut: TokenSplit,
  ) {}

  /** Opens a prepared folder. Lengths are always checked; with `verify`, all hashes too. Throws DataError DATASET_CORRUPT. */
  static async open(
    folder: string,
    /** `checked`: for the held-out part, whose files are verified before they are first read. */
    { verify, checked }: { verify: boolean; checked?: CheckedShards },
  ): Promise<Dataset> {
    const { manifest, sha256 } = await readManifest(folder);
    for (const shard of [...manifest.train.shards, ...manifest.heldOut.shards]) {
      await checkFile(folder, shard.file, shard.tokens * manifest.tokenBytes, verify ? shard.sha256 : null);
      for (const bits of [shard.mask, shard.ends])
        if (bits !== undefined)
          await checkFile(folder, bits.file, Math.ceil(shard.tokens / 8), verify ? bits.sha256 : null);
    }
    const tokenizer = await readTokenizer(folder, manifest);
    const { tokenBytes } = manifest;
    const train = new TokenSplit(folder, manifest.train.shards, tokenBytes);
    const heldOut = new TokenSplit(folder, manifest.heldOut.shards, tokenBytes, checked?.check);
    return new Dataset(folder, manifest, sha256, tokenizer, train, heldOut);
  }

  /**
   * The held-out part in order; every token is predicted once, the first one after an end-of-text token, as a document begins in training.
   * The last sequence is padded with targets of -1, which prompts have too.
   * @param tokenCount tokens to read, rounded up to whole sequences, and further until one has a token to be learned; 0 for all
   */
  async *heldOutBatches(options: {
    sequenceLength: number;
    sequenceCount: number;
    tokenCount: number;
  }): AsyncGenerator<HeldOutBatch> {
    const { sequenceLength, sequenceCount } = options;
    const { endOfTextId } = this.tokenizer;
    const total = this.heldOut.tokenCount;
    let wanted =
      options.tokenCount === 0
        ? total
        : Math.min(total, Math.ceil(options.tokenCount / sequenceLength) * sequenceLength);
    let bytesSoFar = 0;
    let hasTarget = false;
    for (let position = 0; position < wanted;) {
      const count = Math.min(sequenceCount * sequenceLength, wanted - position);
      const tokens = this.heldOut.read(position, count);
      const length = Math.ceil(count / sequenceLength) * sequenceLength;
      const targets = new Int32Array(length).fill(-1);
      targets.set(tokens);
      this.heldOut.mask(position, targets.subarray(0, count));
      this.heldOut.assertUnchanged();
      hasTarget ||= targets.some((target) => target !== -1);
      const inputs = new Int32Array(length).fill(endOfTextId);
      inputs[0] = position === 0 ? endOfTextId : this.heldOut.read(position - 1, 1)[0]!;
      inputs.set(tokens.subarray(0, length - 1), 1);

      position += count;
      // The bytes of the whole part are known exactly, with any tokenizer; those of a piece are counted token by token.
      const { bytes, trained } = this.manifest.heldOut;
      const byteCount =
        position === total
          ? (trained?.bytes ?? bytes) - bytesSoFar
          : await this.textBytes(targets.filter((target) => target !== -1));
      // A mean needs at least one target; every document ends with one.
      if (position === wanted && !hasTarget)
        wanted = Math.min(total, wanted + sequenceCount * sequenceLength);
      bytesSoFar += byteCount;
      yield { inputs, targets, byteCount };
    }
  }

  /** First tokens of a part as the model sees them. */
  async preview(split: 'train' | 'heldOut', tokenCount: number): Promise<PreviewedToken[]> {
    const part = split === 'train' ? this.train : this.heldOut;
    const tokens = part.read(0, Math.min(tokenCount, part.tokenCount));
    const targets = tokens.slice();
    part.mask(0, targets);
    return await Promise.all(
      Array.from(tokens, async (id, index) => ({
        id,
        text: await this.tokenText(id),
        trained: targets[index] !== -1,
      })),
    );
  }

  close(): Promise<void> {
    this.train.close();
    this.heldOut.close();
    return Promise.resolve();
  }

  private async textBytes(tokens: Int32Array): Promise<number> {
    let bytes = 0;
    for (const id of tokens) {
      const token = this.tokenizer.tokenBytes(id);
      if (token === null) return Buffer.byteLength(await this.tokenizer.decode(tokens));
      bytes += token.length;
    }
    return bytes;
  }

  private async tokenText(id: number): Promise<string> {
    if (id === this.tokenizer.endOfTextId) return '<end of text>';
    const bytes = this.tokenizer.tokenBytes(id);
    if (bytes === null) return await this.tokenizer.decode([id]);
    const text = Buffer.from(bytes).toString('utf8');
    if (!text.includes('\ufffd')) return text;
    return Array.from(bytes, (byte) =>
      byte < 0x80 ? String.fromCharCode(byte) : `\\x${byte.toString(16).padStart(2, '0')}`,
    ).join('');
  }
}

/**
 * The tokenizer of a prepared folder. It is all that remains of a data set that was deleted after its jobs had ended. Throws DataError
 * DATASET_CORRUPT.
 */
export async function openTokenizer(folder: string): Promise<{ folder: string; tokenizer: Tokenizer }> {
  const { manifest } = await readManifest(folder);
  return { folder, tokenizer: await readTokenizer(folder, manifest) };
}

async function readTokenizer(folder: string, manifest: DatasetManifest): Promise<Tokenizer> {
  const { kind, endOfTextId, sha256: tokenizerSha256 } = manifest.tokenizer;
  await checkFile(folder, tokenizerFile, null, tokenizerSha256);
  // It was tested when the data set was prepared, and has not changed since.
  const json = async () =>
    jsonTokenizer(await readFile(join(folder, tokenizerFile), 'utf8'), 'huggingFace', {
      isTrusted: true,
      endTokens: { ids: [endOfTextId], name: null },
    });
  const tokenizer = kind === 'bytes' ? bytesTokenizer() : { ...(await json()), kind };
  if (tokenizer.vocabularySize !== manifest.tokenizer.vocabularySize) {
    throw corrupt(
      tokenizerFile,
      `${manifest.tokenizer.vocabularySize} tokens`,
      `${tokenizer.vocabularySize}`,
    );
  }
  return tokenizer;
}

async function checkFile(
  folder: string,
  file: string,
  sizeBytes: number | null,
  sha256: string | null,
): Promise<void> {
  const found = await stat(join(folder, file)).catch((error: unknown) => {
    if (isDiskFault(error)) throw error;
    return undefined;
  });
  if (found === undefined) throw corrupt(file, 'a file', 'none');
  if (sizeBytes !== null && found.size !== sizeBytes)
    throw corrupt(file, `${sizeBytes} bytes`, `${found.size}`);
  if (sha256 === null) return;
  const digest = await digestFile(join(folder, file));
  if (digest.sha256 !== sha256) throw corrupt(file, `SHA-256 ${sha256}`, digest.sha256);
}

function corrupt(file: string, expected: string, got: string): DataError {
  return new DataError('DATASET_CORRUPT', { file, expected, got });
}
