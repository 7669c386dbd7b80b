import type { TrainingData } from './trainingData.js';
import type { Dataset } from './dataset.js';
import type { TokenSplit } from './tokenSplit.js';
import { readSources, sourceOf } from './sourceDocuments.js';

/** A part of a document, given by the number of its sequence in the run and the position of its first target in the sequence. */
export interface SoughtDocument {
  sequence: number;
  firstToken: number;
  tokenCount: number;
}

/** Location of a document. */
export interface LocatedDocument {
  /** Resource name of its data set. */
  dataset: string;
  /** Shard file of the prepared data set with its first token, and the token's position in that file. */
  file: string;
  fileToken: number;
  /** Number of the document in the training part, from 0; null if it is too far from the start to be counted. */
  documentIndex: number | null;
  /** Tokens of the document before the part; null likewise. */
  documentToken: number | null;
  /** Beginning of the part's text. */
  text: string;
  /** Position of the document in the training part, and its number of tokens including the end token; null likewise. */
  documentFirstToken: number | null;
  documentTokenCount: number | null;
  /** The source file that contained it; empty if unknown. */
  sourceFile: string;
  /** Its number among the documents of that file that are trained on; null likewise. */
  sourceDocument: number | null;
}

/** Limit for counting documents from the start of the training part, in tokens: some seconds of reading. */
const countedTokensMax = 2_000_000_000;
const chunkTokens = 1 << 20;
const textTokens = 64;

/** Locates documents of a run in its data sets; results are in the order of the queries. */
export async function locateDocuments(
  data: TrainingData,
  sought: readonly SoughtDocument[],
): Promise<LocatedDocument[]> {
  const source = data.batches();
  const places = sought.map(({ sequence, firstToken }) => {
    const { part, position } = source.placeOf(sequence);
    const { tokenCount } = data.parts[part]!.source.train;
    // The first target is the token after the first input.
    return { part, position: (position + firstToken + 1) % tokenCount };
  });
  const found = new Array<LocatedDocument>(sought.length);
  for (const [part, { dataset, source: set }] of data.parts.entries()) {
    const here = places
      .map(({ part: of, position }, index) => ({ of, position, index }))
      .filter(({ of }) => of === part)
      .sort((a, b) => a.position - b.position);
    const counts = countDocuments(
      set,
      here.map(({ position }) => position),
    );
    const sources = await readSources(set.folder);
    for (const [at, { position, index }] of here.entries()) {
      const document = counts[at] ?? null;
      const { file, first } = set.train.placeOf(position);
      const length = Math.min(sought[index]!.tokenCount, textTokens, set.train.tokenCount - position);
      const tokens = set.train.read(position, length);
      found[index] = {
        dataset,
        file,
        fileToken: first,
        documentIndex: document?.index ?? null,
        documentToken: document === null ? null : position - document.start,
        documentFirstToken: document?.start ?? null,
        documentTokenCount: document === null ? null : endOf(set, position) - document.start,
        ...sourceOf(sources, document?.index),
        text: await set.tokenizer.decode(tokens.filter((id) => id !== set.tokenizer.endOfTextId)),
      };
    }
  }
  return found;
}

/** For each position, in ascending order, the number and start of its document. */
function countDocuments(
  { train, tokenizer: { endOfTextId } }: Dataset,
  positions: readonly number[],
): ({ index: number; start: number } | null)[] {
  const counts: ({ index: number; start: number } | null)[] = [];
  let index = 0;
  let start = 0;
  let done = 0;
  for (const position of positions) {
    if (position > countedTokensMax) {
      counts.push(null);
      continue;
    }
    while (done < position) {
      const ends = endsFrom(train, done, position, endOfTextId);
      for (let at = ends.indexOf(1); at >= 0; at = ends.indexOf(1, at + 1)) {
        index++;
        start = done + at + 1;
      }
      done += ends.length;
    }
    counts.push({ index, start });
  }
  return counts;
}

/** Position after the token that ends the document at a position. */
function endOf({ train, tokenizer: { endOfTextId } }: Dataset, position: number): number {
  for (let done = position; done < train.tokenCount;) {
    const ends = endsFrom(train, done, train.tokenCount, endOfTextId);
    const at = ends.indexOf(1);
    if (at >= 0) return done + at + 1;
    done += ends.length;
  }
  return train.tokenCount;
}

/** Marks tokens in a range that end a document. */
function endsFrom(train: TokenSplit, from: number, to: number, endOfTextId: number): Uint8Array {
  const tokens = train.read(from, Math.min(chunkTokens, to - from));
  const ends = new Uint8Array(tokens.length);
  train.markEnds(from, tokens, endOfTextId, ends);
  return ends;
}
