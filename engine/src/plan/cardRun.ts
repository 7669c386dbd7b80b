import { chooseGraphs, type LayerGraphs } from './adapterGraphs.js';
import { arithmeticOf, type DeviceSpeed } from './deviceSpeed.js';
import { rankOf } from './layerMethod.js';
import { targetModules, type RunSpec, type TargetModule } from './runSpec.js';

export const padded = (columns: number) => Math.ceil(columns / 8) * 8;
/** Padded width of several layers that are computed as one product, as in device/cuda/matrix.ts. */
export const widthOf = (columns: number) => (columns < 256 ? padded(columns) : Math.ceil(columns / 64) * 64);

/** Properties of a run on a card that the estimates share. */
export interface CardRun {
  readonly spec: RunSpec;
  readonly graphs: LayerGraphs;
  /** Bytes per element of what products read. */
  readonly element: 2 | 4;
  /** Whether layers with the same input are computed as one product. */
  readonly isJoined: boolean;
  readonly isE4m3: boolean;
  readonly rankIn: (name: TargetModule) => number;
}

export function cardRun(spec: RunSpec, device: DeviceSpeed): CardRun {
  const { adapter, model } = spec;
  const { precision, basePrecision } = arithmeticOf(spec, device);
  const isE4m3 = basePrecision === 'fp8' && adapter !== null;
  const graphs = chooseGraphs(spec, { instructionSet: device.instructionSet, precision });
  const rankIn = (name: TargetModule) => (adapter?.targetModules.includes(name) ? rankOf(adapter, name) : 0);
  const isPlain = adapter === null || (adapter.dropout === 0 && !adapter.trainableScale);
  const hasPath = targetModules.some((name) => rankIn(name) > 0 && graphs[name] === 'separate');
  const isJoined = precision === 'bfloat16' && isPlain && (isE4m3 || !hasPath) && !model.attentionBias;
  return { spec, graphs, element: precision === 'bfloat16' ? 2 : 4, isJoined, isE4m3, rankIn };
}
