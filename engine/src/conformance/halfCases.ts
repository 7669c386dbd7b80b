import type {
  AttentionShape,
  DeviceBuffer,
  Dropout,
  ForwardMode,
  Layer,
  LayerGradients,
  MlpShape,
} from '../device/device.js';
import { rotaryTable } from '../model/rotaryTable.js';
import type { LayerGraph } from '../plan/adapterGraphs.js';
import type { Bench } from './bench.js';
import type { Case } from './cases.js';

const epsilon = 1e-6;
const constantScale = 0.75;

/** How the layers of a half are stored and trained. */
export interface Variant {
  name: string;
  layers: 'trained' | 'watched' | 'adapted';
  graph?: LayerGraph;
  trainsA?: boolean;
  hasTrainedScale?: boolean;
  dropout?: 1 | 2;
  isBiased?: boolean;
  recomputes?: boolean;
  /** Attention only. */
  hasHeadNorms?: boolean;
  isNotTurned?: boolean;
  masksDocuments?: boolean;
}

export const variants: Variant[] = [
  { name: 'trained', layers: 'trained' },
  { name: 'trained, biased, made again', layers: 'trained', isBiased: true, recomputes: true },
  { name: 'frozen, its gradient looked at', layers: 'watched' },
  { name: 'separate', layers: 'adapted', graph: 'separate' },
  { name: 'separate, biased', layers: 'adapted', graph: 'separate', isBiased: true },
  { name: 'separate, made again', layers: 'adapted', graph: 'separate', recomputes: true },
  { name: 'separate, B alone', layers: 'adapted', graph: 'separate', trainsA: false },
  { name: 'merged', layers: 'adapted', graph: 'merged' },
  { name: 'merged, B alone', layers: 'adapted', graph: 'merged', trainsA: false },
  { name: 'weightGradient', layers: 'adapted', graph: 'weightGradient' },
  { name: 'weightGradient, biased', layers: 'adapted', graph: 'weightGradient', isBiased: true },
  { name: 'dropout of version 1', layers: 'adapted', graph: 'separate', dropout: 1 },
  { name: 'dropout of version 2, biased', layers: 'adapted', graph: 'separate', dropout: 2, isBiased: true },
  { name: 'trained scale', layers: 'adapted', graph: 'separate', hasTrainedScale: true },
  {
    name: 'trained scale and dropout, made again',
    layers: 'adapted',
    graph: 'separate',
    hasTrainedScale: true,
    dropout: 2,
    recomputes: true,
  },
];

/** Options of attention, each combined with every way of computing a half: plain, with a merged base, layer by layer. */
export const attentionVariants: Variant[] = [
  { name: 'trained, documents masked', layers: 'trained', masksDocuments: true },
  {
    name: 'merged, documents masked, made again',
    ...{ layers: 'adapted', graph: 'merged', masksDocuments: true, recomputes: true },
  },
  {
    name: 'trained scale, documents masked',
    layers: 'adapted',
    graph: 'separate',
    hasTrainedScale: true,
    masksDocuments: true,
  },
  { name: 'trained, head norms', layers: 'trained', hasHeadNorms: true },
  { name: 'trained, not turned', layers: 'trained', isNotTurned: true },
  {
    name: 'separate, biased, head norms, made again',
    ...{ layers: 'adapted', graph: 'separate', isBiased: true, hasHeadNorms: true, recomputes: true },
  },
  {
    name: 'merged, head norms, not turned',
    layers: 'adapted',
    graph: 'merged',
    hasHeadNorms: true,
    isNotTurned: true,
  },
  { name: 'frozen, its gradient looked at, head norms', layers: 'watched', hasHeadNorms: true },
  {
    name: 'dropout of version 2, head norms',
    layers: 'adapted',
    graph: 'separate',
    dropout: 2,
    hasHeadNorms: true,
  },
  {
    name: 'trained scale, not turned, made again',
    ...{ layers: 'adapted', graph: 'separate', hasTrainedScale: true, isNotTurned: true, recomputes: true },
  },
];

/** 'preset': shape and width of llama-60m; 'long': fills no tile completely, with grouped queries. */
export type Size = 'small' | 'larger' | 'preset' | 'long';

export const mlpShapes: Record<Size, { shape: MlpShape; rank: number }> = {
  small: { shape: { batch: 1, time: 3, hidden: 4, intermediate: 6 }, rank: 2 },
  larger: { shape: { batch: 1, time: 67, hidden: 33, intermediate: 70 }, rank: 17 },
  preset: { shape: { batch: 2, time: 512, hidden: 512, intermediate: 1376 }, rank: 128 },
  long: { shape: { batch: 1, time: 2049, hidden: 256, intermediate: 683 }, rank: 24 },
};

export const attentionShapes: Record<Size, { shape: AttentionShape; rank: number }> = {
  small: { shape: { batch: 2, time: 3, hidden: 4, heads: 2, kvHeads: 1, headDim: 2 }, rank: 2 },
  larger: { shape: { batch: 2, time: 67, hidden: 33, heads: 6, kvHeads: 2, headDim: 16 }, rank: 17 },
  preset: {
    shape: { batch: 2, time: 512, hidden: 512, heads: 8, kvHeads: 8, headDim: 64 },
    rank: 128,
  },
  long: { shape: { batch: 1, time: 2049, hidden: 256, heads: 4, kvHeads: 2, headDim: 64 }, rank: 24 },
};

const training = (recomputes: boolean): ForwardMode => ({
  keepsState: !recomputes,
  precision: 'run',
  cache: null,
});

export function mlpCase(size: Size, variant: Variant): Case {
  const { shape, rank } = mlpShapes[size];
  const { hidden, intermediate } = shape;
  const rows = shape.batch * shape.time;
  const plain = { ...variant, isBiased: false }; // these layers have no bias
  return {
    call: 'mlpHalf',
    name: `mlpHalf ${variant.name} ${size}`,
    ways: waysOf(variant),
    async run(bench) {
      const { device } = bench;
      const layers = {
        gate: layerOf(bench, 'gate', 4, hidden, intermediate, rank, plain),
        up: layerOf(bench, 'up', 5, hidden, intermediate, rank, plain),
        down: layerOf(bench, 'down', 6, intermediate, hidden, rank, plain),
      };
      const x = bench.stream('x', rows * hidden);
      const half = { shape, gain: bench.input('gain', hidden), epsilon, ...layers };
      const state = device.mlpHalfForward(
        bench.outputStream('y', rows * hidden),
        x,
        half,
        training(!!variant.recomputes),
      );
      const gradients = {
        dx: bench.outputStream('dx', rows * hidden),
        gain: bench.output('dgain', hidden),
        gate: gradientsOf(bench, layers.gate, plain),
        up: gradientsOf(bench, layers.up, plain),
        down: gradientsOf(bench, layers.down, plain),
      };
      device.mlpHalfBackward(gradients, bench.stream('dy', rows * hidden), x, state, half);
      return await finish(bench, Object.values(layers));
    },
  };
}

export function attentionCase(size: Size, variant: Variant): Case {
  const { shape, rank } = attentionShapes[size];
  const rows = shape.batch * shape.time;
  return {
    call: variant.masksDocuments ? 'attentionHalf of masked documents' : 'attentionHalf',
    name: `attentionHalf ${variant.name} ${size}`,
    ways: waysOf(variant),
    async run(bench) {
      const { device } = bench;
      const half = attentionHalf(bench, shape, rank, variant);
      const x = bench.stream('x', rows * shape.hidden);
      const y = bench.outputStream('y', rows * shape.hidden);
      const state = device.attentionHalfForward(y, x, half, training(!!variant.recomputes));
      const { q, k, v, o } = half;
      const gradients = {
        dx: bench.outputStream('dx', rows * shape.hidden),
        gain: bench.output('dgain', shape.hidden),
        headNorms: half.headNorms && {
          q: bench.output('d q norm', shape.headDim),
          k: bench.output('d k norm', shape.headDim),
        },
        q: gradientsOf(bench, q, variant),
        k: gradientsOf(bench, k, variant),
        v: gradientsOf(bench, v, variant),
        o: gradientsOf(bench, o, { ...variant, isBiased: false }),
      };
      device.attentionHalfBackward(gradients, bench.stream('dy', rows * shape.hidden), x, state, half);
      return await finish(bench, [q, k, v, o]);
    },
  };
}

/** Forward passes of a half in the other modes: float32 from the float32 weights, and with a cache. */
export function modeCases(size: Size): Case[] {
  const { shape, rank } = attentionShapes[size];
  const one = { ...shape, batch: 1 };
  const merged: Variant = {
    name: 'merged',
    ...{ layers: 'adapted', graph: 'merged', isBiased: true, hasHeadNorms: true },
  };
  const separate: Variant = { ...merged, graph: 'separate' };
  const mlp = mlpShapes[size];
  return [
    {
      call: 'attentionHalf in float32',
      name: `attentionHalf in float32, merged ${size}`,
      ways: ['float32'],
      isExact: true,
      async run(bench) {
        const half = attentionHalf(bench, shape, rank, merged);
        const rows = shape.batch * shape.time;
        bench.device.attentionHalfForward(
          bench.outputStream('y', rows * shape.hidden),
          bench.stream('x', rows * shape.hidden),
          half,
          { keepsState: false, precision: 'float32', cache: null },
        );
        return await finish(bench, [half.q, half.k, half.v, half.o]);
      },
    },
    {
      call: 'mlpHalf in float32',
      name: `mlpHalf in float32, merged ${size}`,
      ways: ['float32'],
      isExact: true,
      async run(bench) {
        const { hidden, intermediate } = mlp.shape;
        const rows = mlp.shape.batch * mlp.shape.time;
        const plain = { ...merged, isBiased: false };
        const layers = {
          gate: layerOf(bench, 'gate', 4, hidden, intermediate, mlp.rank, plain),
          up: layerOf(bench, 'up', 5, hidden, intermediate, mlp.rank, plain),
          down: layerOf(bench, 'down', 6, intermediate, hidden, mlp.rank, plain),
        };
        const half = { shape: mlp.shape, gain: bench.input('gain', hidden), epsilon, ...layers };
        bench.device.mlpHalfForward(
          bench.outputStream('y', rows * hidden),
          bench.stream('x', rows * hidden),
          half,
          { keepsState: false, precision: 'float32', cache: null },
        );
        return await finish(bench, Object.values(layers));
      },
    },
    {
      call: 'attentionHalf with a cache',
      name: `attentionHalf with a cache ${size}`,
      ways: ['cache'],
      async run(bench) {
        const { device } = bench;
        const total = one.time + 3;
        const cache = device.newCache(one, 2, total);
        const half = attentionHalf(bench, one, rank, separate, total);
        // A prompt, then one id, then two.
        for (const time of [one.time, 1, 2]) {
          const name = `${cache.length}`;
          device.attentionHalfForward(
            bench.outputStream(`y at ${name}`, time * one.hidden),
            bench.stream(`x at ${name}`, time * one.hidden),
            { ...half, shape: { ...one, time } },
            { keepsState: false, precision: 'run', cache: { keysAndValues: cache, block: 1 } },
          );
          device.advanceCache(cache, time);
        }
        device.releaseCache(cache);
        return await finish(bench, [half.q, half.k, half.v, half.o]);
      },
    },
  ];
}

function attentionHalf(
  bench: Bench,
  shape: AttentionShape,
  rank: number,
  variant: Variant,
  positions = shape.time,
) {
  const { hidden, heads, kvHeads, headDim } = shape;
  const [width, keyWidth] = [heads * headDim, kvHeads * headDim];
  const table = rotaryTable(positions, headDim, 10_000);
  return {
    shape,
    gain: bench.input('gain', hidden),
    epsilon,
    q: layerOf(bench, 'q', 0, hidden, width, rank, variant),
    k: layerOf(bench, 'k', 1, hidden, keyWidth, rank, variant),
    v: layerOf(bench, 'v', 2, hidden, keyWidth, rank, variant),
    o: layerOf(bench, 'o', 3, width, hidden, rank, { ...variant, isBiased: false }),
    headNorms: variant.hasHeadNorms
      ? { q: bench.input('q norm', headDim), k: bench.input('k norm', headDim) }
      : null,
    angles: variant.isNotTurned
      ? null
      : {
          positionCount: positions,
          cos: bench.given('cos', table.cos),
          sin: bench.given('sin', table.sin),
        },
    documents: variant.masksDocuments ? bench.masked(documentsOf(shape), shape.time) : null,
  };
}

function layerOf(
  bench: Bench,
  name: string,
  index: number,
  inFeatures: number,
  outFeatures: number,
  rank: number,
  variant: Variant,
): Layer {
  const { device } = bench;
  const { layers, graph = 'separate', hasTrainedScale, dropout } = variant;
  // Scaled so that a layer's outputs are about as large as its inputs.
  const weight = bench.input(`${name} weight`, inFeatures * outFeatures, 1 / Math.sqrt(inFeatures));
  const bias = variant.isBiased ? bench.input(`${name} bias`, outFeatures, 0.3) : null;
  const layer = { name, index, inFeatures, outFeatures, weight, bias };
  if (layers === 'trained') return { ...layer, base: null, adapter: null };
  const base = device.packBase(weight, inFeatures, outFeatures);
  if (layers === 'watched') return { ...layer, base, adapter: null };
  const adapter = {
    rank,
    a: bench.input(`${name} a`, inFeatures * rank, 1 / Math.sqrt(inFeatures)),
    b: bench.input(`${name} b`, rank * outFeatures, 1 / Math.sqrt(rank)),
    scale: hasTrainedScale ? bench.given(`${name} scale`, Float32Array.of(0.4)) : constantScale,
    graph,
    dropout: dropout === undefined ? null : dropoutOf(dropout),
  };
  if (graph !== 'separate') device.packMerged(base, weight, adapter);
  return { ...layer, base, adapter };
}

/** Documents of one position and of more than a tile, different in each sequence. */
function documentsOf({ batch, time }: AttentionShape): Int32Array {
  let begin = 0;
  return Int32Array.from({ length: batch * time }, (_, row) => {
    const position = row % time;
    if (position === 0) begin = 0;
    else if ([1, 2, 34, 35].includes(position + Math.floor(row / time))) begin = position;
    return begin;
  });
}

const dropoutOf = (version: 1 | 2): Dropout => ({
  share: 0.3,
  place: { version, seed: 5, step: 3, micro: 1, firstSequence: 8 },
});

function gradientsOf(bench: Bench, layer: Layer, variant: Variant): LayerGradients {
  const { name, weight, bias, adapter } = layer;
  const of = (what: string, wanted: DeviceBuffer | null | undefined | false): DeviceBuffer | null =>
    wanted ? bench.output(`d ${name} ${what}`, wanted.length) : null;
  return {
    weight: of('weight', adapter === null && weight),
    a: of('a', variant.trainsA !== false && adapter?.a),
    b: of('b', adapter?.b),
    scale: of('scale', variant.hasTrainedScale && (adapter?.scale as DeviceBuffer)),
    // Not needed if the weight's gradient is only observed.
    bias: of('bias', variant.layers !== 'watched' && bias),
  };
}

/** The device's ways of computing a half that the variant uses. */
function waysOf(variant: Variant): string[] {
  const { hasHeadNorms, isNotTurned } = variant;
  return [
    ...waysOfLayers(variant),
    ...(hasHeadNorms ? ['head norms'] : []),
    ...(isNotTurned ? ['not turned'] : []),
  ];
}

function waysOfLayers({ dropout, hasTrainedScale, graph }: Variant): string[] {
  if (dropout === 2) return ['path apart', 'dropoutMask'];
  if (dropout === 1 || hasTrainedScale) return ['path apart'];
  return graph === undefined || graph === 'separate' ? ['plain'] : ['plain', 'packMerged'];
}

async function finish(bench: Bench, layers: readonly Layer[]): Promise<Map<string, Float32Array>> {
  const results = await bench.results({});
  for (const { base } of layers) if (base !== null) bench.device.releaseBase(base);
  return results;
}
