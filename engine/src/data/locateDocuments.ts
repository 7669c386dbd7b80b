import type { TrainingData } from './trainingData.js';
import type { Dataset } from './dataset.js';

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
    for (const [at, { position, index }] of here.entries()) {
      const { file, first } = set.train.placeOf(position);
      const length = Math.min(sought[index]!.tokenCount, textTokens, set.train.tokenCount - position);
      const tokens = set.train.read(position, length);
      found[index] = {
        dataset,
        file,
        fileToken: first,
        documentIndex: counts[at]?.index ?? null,
        documentToken: counts[at] === null ? null : position - counts[at]!.start,
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
      const tokens = train.read(done, Math.min(chunkTokens, position - done));
      for (let at = tokens.indexOf(endOfTextId); at >= 0; at = tokens.indexOf(endOfTextId, at + 1)) {
        index++;
        start = done + at + 1;
      }
      done += tokens.length;
    }
    counts.push({ index, start });
  }
  return counts;
}
