import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Llama } from '../model/llama.js';
import type { LinearLayer } from '../model/linearLayer.js';
import { valuesOf } from '../model/parameter.js';
import { targetModules } from '../plan/runSpec.js';
import type { LayerRank } from '../plan/trainingEvent.js';

/**
 * Limit of the work of one measurement, in float64 operations: about two seconds natively. Above it only some layers are measured, but at
 * least one of each kind, so that the figures represent the whole model.
 */
export const rankFlopsMax = 1e10;

/** What the singular values of a layer's change say about its rank. */
export interface RankFigures {
  /** exp of the entropy of the singular values divided by their sum; 0 for a change of zero. */
  effectiveRank: number;
  /** Number of singular values above 1 % of the largest. */
  rankAboveOnePercent: number;
}

/**
 * Measures the ranks of W_now - W_start, the evidence that restarts add up to a high rank (relora.md §6), for the layers that
 * `chooseLayers` selects. `readStart` returns a layer's weight [in, out] at the start of the adapter phase. Yields to the event loop
 * between layers.
 */
export async function measureRanks(
  layers: readonly LinearLayer[],
  readStart: (layer: LinearLayer) => Promise<Float32Array>,
  { device }: Pick<Llama, 'device'>,
): Promise<LayerRank[]> {
  const ranks: LayerRank[] = [];
  for (const layer of chooseLayers(layers.filter(({ adapter }) => adapter !== null))) {
    const change = await readStart(layer);
    const now = await valuesOf(device, layer.weight);
    for (let i = 0; i < change.length; i++) change[i] = now[i]! - change[i]!;
    device.discard(now);
    const values = await device.singularValues(change, layer.inFeatures, layer.outFeatures);
    device.discard(change);
    // Weights that are not finite have no rank; the loss will show them.
    if (!Number.isFinite(values[0])) continue;
    ranks.push({
      layer: layer.name,
      ...rankFigures(values),
      adapterRank: layer.adapter!.rank,
    });
    await nextTurn();
  }
  return ranks;
}

/** Figures of singular values that are sorted, largest first. */
export function rankFigures(values: Float64Array): RankFigures {
  const sum = values.reduce((total, value) => total + value, 0);
  if (sum === 0) return { effectiveRank: 0, rankAboveOnePercent: 0 };
  let entropy = 0;
  for (const value of values) {
    const share = value / sum;
    if (share > 0) entropy -= share * Math.log(share);
  }
  const threshold = 0.01 * values[0]!;
  return {
    effectiveRank: Math.exp(entropy),
    rankAboveOnePercent: values.filter((value) => value > threshold).length,
  };
}

/**
 * Layers to measure: all if the limit allows it, otherwise first the middle one of each kind, then one more of each kind as long as the
 * limit allows. The choice depends only on shapes, so the figures of all restarts can be compared.
 */
export function chooseLayers(layers: readonly LinearLayer[], flopsMax = rankFlopsMax): LinearLayer[] {
  const kinds = targetModules.map((module) =>
    fromTheMiddle(layers.filter((layer) => layer.module === module)),
  );
  const chosen = new Set<LinearLayer>();
  let flops = 0;
  for (let depth = 0; kinds.some((kind) => depth < kind.length); depth++) {
    const round = kinds.flatMap((kind) => kind[depth] ?? []);
    flops += round.reduce((total, layer) => total + singularValueFlops(layer), 0);
    if (depth > 0 && flops > flopsMax) break;
    for (const layer of round) chosen.add(layer);
  }
  return layers.filter((layer) => chosen.has(layer));
}

/** Reduction to bidiagonal form, which dominates: 4 m n² for m >= n. */
function singularValueFlops({ inFeatures, outFeatures }: LinearLayer): number {
  return 4 * Math.max(inFeatures, outFeatures) * Math.min(inFeatures, outFeatures) ** 2;
}

/** The middle one first, then outwards. */
function fromTheMiddle(layers: LinearLayer[]): LinearLayer[] {
  const middle = (layers.length - 1) / 2;
  return layers
    .map((layer, index) => ({ layer, distance: Math.abs(index - middle) }))
    .sort((one, other) => one.distance - other.distance)
    .map(({ layer }) => layer);
}
