import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { DataError } from './dataErrors.js';
import { isMasked, type PlacedPiece } from './documents.js';
import { follows, type EncodedBlock, type TextBlock } from './encodeBlock.js';
import type { Encoders } from './encoders.js';
import type { LongTextState } from './longText.js';
import { LostText } from './lostText.js';
import { heldOutTextFile, tokenizerFile, type DatasetManifest } from './manifest.js';
import { emptyTrainingPart, placedPieces, type Pass } from './placedPieces.js';
import type { PreparationProgress, WrittenMark } from './preparationProgress.js';
import { SourceCounter, writeSources } from './sourceDocuments.js';
import { SplitWriter, type SplitWriterOptions } from './splitWriter.js';
import type { Tokenizer } from './tokenizer.js';

const blockPiecesMax = 4096;
/** Number of preceding characters with which a block is encoded if its text began earlier. */
const leadLength = 1 << 16;

export interface WriteOptions {
  tokenizer: Tokenizer;
  encoders: Encoders;
  folder: string;
  progress: PreparationProgress;
}

/** Pieces that are encoded together, with the reading positions before and after them. */
interface Block {
  pieces: PlacedPiece[];
  encoded: Promise<EncodedBlock>;
  /** The request that was sent. */
  text: TextBlock;
  end: Place;
}

type Place = Pick<WrittenMark, 'file' | 'pieces' | 'textBytes' | 'duplicates'>;

/**
 * Encodes all text of the pass, and writes the two parts in order. Blocks are encoded in parallel, even those of one long text: each is
 * encoded with only the end of the text before it, and encoded again from the previous block's final state if that was not enough. So the
 * tokens are those of one sequential reading, however many encoders there are.
 */
export async function writeSplits(
  { tokenizer, encoders, folder, progress }: WriteOptions,
  pass: Pass,
): Promise<Pick<DatasetManifest, 'train' | 'heldOut' | 'tokenBytes' | 'unknown'>> {
  const tokenBytes = tokenizer.vocabularySize <= 65_536 ? 2 : 4;
  const { train, heldOut, written } = await openWriters(progress, {
    ...{ folder, tokenBytes, endOfTextId: tokenizer.endOfTextId },
    shardBytesMax: pass.documents.limits.shardBytesMax,
    isMasked: isMasked(pass.documents),
    mayEndWithin: pass.documents.chat !== null,
  });
  try {
    const lost = new LostText(tokenizer.knownCharacters(), written?.lost);
    const sources = new SourceCounter(written?.sources);
    let long: LongTextState | null = written?.long ?? null;
    const blocks = new Blocks(encoders, pass, written);
    for await (const { pieces, encoded, text, end } of blocks.read()) {
      let block = await encoded;
      if (!follows(block, long)) {
        const before = long === null ? null : { state: long };
        block = await encoders.encode({ pieces: text.pieces, before });
      }
      long = block.after;
      let place = 0;
      for (const [index, piece] of pieces.entries()) {
        const count = block.counts[index]!;
        const tokens = block.tokens.subarray(place, place + count);
        lost.add(piece, tokens);
        const split = piece.split === 'train' ? train : heldOut;
        const marks = block.isTrained?.subarray(place, place + count) ?? null;
        await split.write(piece, tokens, marks);
        if (piece.split === 'train' && piece.endsDocument) sources.add(piece.file);
        place += count;
      }
      if (progress.isDue) {
        const marks = { train: await train.mark(), heldOut: await heldOut.mark() };
        await progress.set({ written: { ...end, ...marks, long, lost: lost.mark, sources: sources.mark } });
      }
      await nextTurn(); // encoding blocks the event loop, but messages and signals must be handled
    }
    const unknown = lost.end();
    await writeSources(folder, sources.mark);
    const trained = await train.end();
    const { duplicates } = blocks;
    if (trained.tokens === 0) throw emptyTrainingPart(pass, duplicates);
    return {
      // Omitted without duplicates, so that such manifests have the same form as before.
      train: duplicates === 0 ? trained : { ...trained, duplicates },
      heldOut: await heldOut.end(),
      tokenBytes,
      unknown,
    };
  } finally {
    await train.close();
    await heldOut.close();
  }
}

interface Writers {
  train: SplitWriter;
  heldOut: SplitWriter;
  /** Progress of the writers; undefined at the beginning. */
  written: WrittenMark | undefined;
}

/** Writers that continue after an earlier attempt, if everything that it wrote is unchanged. */
async function openWriters(
  progress: PreparationProgress,
  options: Omit<SplitWriterOptions, 'prefix' | 'textFile'>,
): Promise<Writers> {
  const { written } = progress;
  if (written !== undefined) {
    try {
      return await bothWriters(options, written);
    } catch (error) {
      if (!(error instanceof DataError)) throw error;
      await progress.set({ written: undefined });
    }
  }
  if (progress.isKept) await removeParts(options.folder);
  return await bothWriters(options, undefined);
}

async function bothWriters(
  options: Omit<SplitWriterOptions, 'prefix' | 'textFile'>,
  written: WrittenMark | undefined,
): Promise<Writers> {
  const train = await SplitWriter.open({ ...options, prefix: 'train' }, written?.train);
  try {
    const heldOutOptions = { ...options, prefix: 'held-out', textFile: heldOutTextFile };
    const heldOut = await SplitWriter.open(heldOutOptions, written?.heldOut);
    return { train, heldOut, written };
  } catch (error) {
    await train.close();
    throw error;
  }
}

/** Removes files of an attempt whose progress was not stored. */
async function removeParts(folder: string): Promise<void> {
  for (const name of await readdir(folder))
    if (name !== tokenizerFile) await rm(join(folder, name), { recursive: true });
}

/** Reads pieces and has them encoded, some blocks ahead of the consumer. */
class Blocks {
  private place: Place;
  private duplicatesOfFile = 0;
  private readonly skipped: number;
  /** End of the text that the next piece continues; null if it begins a text. */
  private lead: string | null = null;

  constructor(
    private readonly encoders: Encoders,
    private readonly pass: Pass,
    private readonly written: WrittenMark | undefined,
  ) {
    const { file = 0, duplicates = 0, pieces = 0 } = written ?? {};
    this.place = { file, duplicates, pieces: 0, textBytes: 0 };
    this.skipped = pieces;
  }

  /** Documents dropped so far. */
  get duplicates(): number {
    return this.place.duplicates + this.duplicatesOfFile;
  }

  async *read(): AsyncGenerator<Block> {
    const waiting: Block[] = [];
    for await (const pieces of this.batches()) {
      const text = this.textBlock(pieces);
      const encoded = this.encoders.encode(text);
      encoded.catch(() => {}); // the error reaches whoever takes the block
      waiting.push({ pieces, text, encoded, end: { ...this.place } });
      while (waiting.length > this.encoders.ahead) yield waiting.shift()!;
    }
    yield* waiting;
  }

  private textBlock(placed: readonly PlacedPiece[]): TextBlock {
    const before = this.lead === null ? null : { lead: this.lead };
    const last = placed.at(-1)!;
    this.lead = last.endsText ? null : endOf(last.text);
    return {
      pieces: placed.map(({ text, endsText, spans }) => ({ text, endsText, ...(spans && { spans }) })),
      before,
    };
  }

  private async *batches(): AsyncGenerator<PlacedPiece[]> {
    let batch: PlacedPiece[] = [];
    let bytes = 0;
    const from = { file: this.place.file, textBytes: this.written?.textBytes ?? 0 };
    for await (const piece of placedPieces(this.pass, (file) => this.countDuplicate(file), from)) {
      this.enter(piece.fileIndex);
      this.place.pieces++;
      this.place.textBytes += piece.textBytes;
      if (piece.fileIndex === from.file && this.place.pieces <= this.skipped) {
        this.lead = piece.endsText ? null : endOf(piece.text);
        continue;
      }
      batch.push(piece);
      bytes += piece.textBytes;
      if (bytes < this.pass.documents.limits.blockBytesMax && batch.length < blockPiecesMax) continue;
      yield batch;
      batch = [];
      bytes = 0;
    }
    if (batch.length > 0) yield batch;
  }

  private countDuplicate(file: number): void {
    this.enter(file);
    this.duplicatesOfFile++;
  }

  /** Pieces and duplicates arrive in the order of the files. */
  private enter(file: number): void {
    if (file === this.place.file) return;
    this.place = { file, pieces: 0, textBytes: 0, duplicates: this.duplicates };
    this.duplicatesOfFile = 0;
  }
}

function endOf(text: string): string {
  const end = text.slice(-leadLength);
  // Not from the middle of a surrogate pair.
  return (end.charCodeAt(0) & 0xfc00) === 0xdc00 ? end.slice(1) : end;
}
