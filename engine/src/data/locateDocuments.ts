import type { TrainingData } from './trainingData.js';
import type { Dataset } from './dataset.js';
import type { TokenSplit } from './tokenSplit.js';
import { readSources, sourceOf } from './sourceDocuments.js';

/** A part of a document, by the number of its sequence in the run and the place of its first target there. */
export interface SoughtDocument {
  sequence: number;
  firstToken: number;
  tokenCount: number;
}

/** Where a document lies. */
export interface LocatedDocument {
  /** Resource name of its data set. */
  dataset: string;
  /** File of the prepared data set that its first token is in, and its place in that file, in tokens. */
  file: string;
  fileToken: number;
  /** Number of the document in the training part, from 0; null where it lies too far behind to be counted. */
  documentIndex: number | null;
  /** Tokens of the document before the part; null likewise. */
  documentToken: number | null;
  /** How the part begins. */
  text: string;
  /** Place of the document in the training part, and its tokens with the one that ends it; null likewise. */
  documentFirstToken: number | null;
  documentTokenCount: number | null;
  /** The file that it was in when it was prepared; empty where that is not known. */
  sourceFile: string;
  /** Its number among the documents of that file that are trained on; null likewise. */
  sourceDocument: number | null;
}

/** Documents are counted from the start of the training part, so far: some seconds of reading. */
const countedTokensMax = 2_000_000_000;
const chunkTokens = 1 << 20;
const textTokens = 64;

/** Finds documents of a run in its data sets; answers in the order of the question. */
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

/** For each position, in rising order, the number of its document and where that begins. */
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

/** Place behind the token that ends the document at a position. */
function endOf({ train, tokenizer: { endOfTextId } }: Dataset, position: number): number {
  for (let done = position; done < train.tokenCount;) {
    const ends = endsFrom(train, done, train.tokenCount, endOfTextId);
    const at = ends.indexOf(1);
    if (at >= 0) return done + at + 1;
    done += ends.length;
  }
  return train.tokenCount;
}

/** Which tokens from a position on end a document, some of them. */
function endsFrom(train: TokenSplit, from: number, to: number, endOfTextId: number): Uint8Array {
  const tokens = train.read(from, Math.min(chunkTokens, to - from));
  const ends = new Uint8Array(tokens.length);
  train.markEnds(from, tokens, endOfTextId, ends);
  return ends;
}
