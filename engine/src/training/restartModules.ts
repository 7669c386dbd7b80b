import type { LayerDelta } from '../model/adapterSet.js';
import type { LinearLayer } from '../model/linearLayer.js';
import { targetModules } from '../plan/runSpec.js';
import type { LayerRank, RestartModule } from '../plan/trainingEvent.js';

/** What a restart did, by kind of adapted layer, in the order within a block. */
export function restartModules(
  layers: readonly LinearLayer[],
  deltas: readonly LayerDelta[],
  ranks: readonly LayerRank[],
): RestartModule[] {
  return targetModules.flatMap((module) => {
    const names = new Set(layers.filter((layer) => layer.module === module).map(({ name }) => name));
    const norms = deltas.filter(({ layer }) => names.has(layer)).map(({ deltaNorm }) => deltaNorm);
    if (norms.length === 0) return [];
    const measured = ranks.filter(({ layer }) => names.has(layer));
    return {
      module,
      deltaNorm: Math.hypot(...norms),
      effectiveRank: mean(measured.map(({ effectiveRank }) => effectiveRank)),
      rankAboveOnePercent: mean(measured.map(({ rankAboveOnePercent }) => rankAboveOnePercent)),
      measuredLayerCount: measured.length,
    };
  });
}

/** 0 for an empty list. */
export function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
}
