import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../../', import.meta.url));

/** Three kinds of text that exist in every checkout. */
const texts = {
  pages: () => markdownOf('docs'),
  contract: () => textOf('proto/relora/v1', '.proto'),
  changes: () => readFileSync(`${root}CHANGELOG.md`, 'utf8'),
};

/** Uploads missing data sets; all use the tokenizer of the first. */
export async function makeDatasets(client) {
  for (const [datasetId, text] of Object.entries(texts))
    await client.uploadDataset({
      datasetId,
      files: [{ content: text(), fileName: `${datasetId}.txt` }],
      spec: {
        tokenizer:
          datasetId === 'pages' ? { trainedBpe: { vocabularySize: 1024 } } : { dataset: 'datasets/pages' },
        heldOutShare: 0.1,
      },
    });
}

/** All cadences are by time only. */
export function jobSpec({ stepCount, everySeconds }) {
  const byTime = { everyStepCount: 0, everySeconds };
  const warmStart = Math.round(stepCount / 10);
  return {
    model: {
      config: { hiddenSize: 64, intermediateSize: 176, numHiddenLayers: 2, numAttentionHeads: 4 },
    },
    mixture: [
      { dataset: 'datasets/pages', weight: 4 },
      { dataset: 'datasets/contract', weight: 2 },
      { dataset: 'datasets/changes', weight: 1 },
    ],
    warmStart: { stepCount: warmStart, warmupStepCount: 100 },
    stepCount: stepCount - warmStart,
    adapter: { rank: 8, cycleStepCount: Math.round(stepCount / 10), restartWarmupStepCount: 20 },
    batch: { sequenceLength: 64, sequenceCount: 4 },
    evaluation: { ...byTime, tokenCount: 4096, finalTokenCount: 16_384 },
    checkpoint: { everyStepCount: stepCount, everySeconds },
    sample: { ...byTime, tokenCount: 32 },
    seed: 1,
    everyStepEvent: true,
  };
}

function textOf(folder, ending) {
  const names = readdirSync(`${root}${folder}`).filter((name) => name.endsWith(ending));
  return names.map((name) => readFileSync(`${root}${folder}/${name}`, 'utf8')).join('\n');
}

function markdownOf(folder) {
  return textOf(folder, '.md');
}
