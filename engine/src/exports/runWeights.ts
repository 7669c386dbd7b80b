import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { tokenizerFile } from '../data/manifest.js';
import type { Parameter } from '../model/parameter.js';
import type { TrainingRun } from '../training/trainingRun.js';
import { specHash } from '../plan/specHash.js';
import { scaleOf, type WeightSource } from './weightSource.js';

/** The current weights of a run. They are not copied, so the run must not continue until the export is done. */
export async function runWeights(run: TrainingRun): Promise<WeightSource> {
  const { model, dataset, progress } = run;
  const layers = new Map(model.layers.map((layer) => [layer.name, layer]));
  const valuesOf = (parameter: Parameter) => model.valuesOf(parameter);
  const adapter = model.adapterSettings;
  return {
    config: model.config,
    adapter,
    lineage: {
      specSha256: specHash(run.spec, run.baseWeightsSha256),
      datasetSha256: dataset.manifestSha256,
      step: progress.nextStep,
      cycle: adapter === null ? null : progress.restartCount + 1,
      restartCount: progress.restartCount,
      trainedTokens: progress.trainedTokens,
    },
    tokenizerJson: await readFile(join(dataset.folder, tokenizerFile), 'utf8'),
    endOfTextId: dataset.tokenizer.endOfTextId,
    modelFiles: run.modelFiles,
    weight: (name) => valuesOf(model.parameters.get(name)!),
    merged: (name) => model.mergedWeight(layers.get(name.replace(/\.weight$/, ''))!),
    async factors(layer) {
      const found = layers.get(layer)!.adapter;
      if (found === null) return null;
      const { rank, a, b, scale } = found;
      const g = scale === null ? null : (await valuesOf(scale))[0]!;
      return {
        rank,
        a: await valuesOf(a),
        b: await valuesOf(b),
        scale: scaleOf(adapter!, layer, g),
      };
    },
  };
}
