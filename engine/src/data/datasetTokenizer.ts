import { open, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { seededShares } from './permutation.js';
import { emptyTrainingPart, placedPieces, type Pass } from './placedPieces.js';
import type { PrepareOptions } from './prepareDataset.js';
import { byteLevelTokenizerJson, trainableText, trainBpe } from './trainBpe.js';

/** The tokenizer.json of a data set; if needed, trains a vocabulary on the text of the pass. */
export async function tokenizerJson(
  spec: PrepareOptions['tokenizer'],
  folder: string,
  pass: Pass,
): Promise<string> {
  if (spec.kind === 'bytes') return byteLevelTokenizerJson([]); // so that a byte-level model can be loaded elsewhere
  if (spec.kind === 'huggingFace') return spec.tokenizerJson;
  const samplePath = join(folder, '.sample.txt');
  const scratchPath = join(folder, '.trained.json');
  const clear = async () =>
    await Promise.all([rm(samplePath, { force: true }), rm(scratchPath, { force: true })]);
  await clear(); // left by a killed process
  try {
    await writeSample(samplePath, pass);
    return await trainBpe(samplePath, spec.vocabularySize, scratchPath);
  } finally {
    await clear();
  }
}

/** Writes training text for a vocabulary: all text, or pieces spread evenly over it. */
async function writeSample(path: string, pass: Pass): Promise<void> {
  const { seed, limits } = pass.documents;
  const bytesMax = limits.tokenizerSampleBytesMax;
  const share = bytesMax / Math.max(1, pass.textBytes);
  const shareOf = seededShares(seed, 'vocabulary');
  const sample = await open(path, 'wx');
  try {
    let written = 0;
    let waiting = '';
    let index = 0;
    let duplicates = 0;
    for await (const { text, split, textBytes } of placedPieces(pass, () => duplicates++)) {
      if (split !== 'train' || shareOf(index++) >= share || written + textBytes > bytesMax) continue;
      written += textBytes;
      waiting += `${trainableText(text)}\n`;
      if (waiting.length < 1 << 20) continue;
      await sample.writeFile(waiting);
      waiting = '';
    }
    if (index === 0) throw emptyTrainingPart(pass, duplicates);
    await sample.writeFile(waiting);
  } finally {
    await sample.close();
  }
}
