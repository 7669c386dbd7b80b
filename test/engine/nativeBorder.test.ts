import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, openSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { patienceMs } from '../patience.mjs';
import {
  loadNativeAddon,
  type NativeAdapter,
  type NativeLayer,
  type NativeLayerGradients,
  type PackedBase,
} from '../../engine/dist/device/cpu/nativeAddon.js';
import { temporaryFolders } from './tinyRun.js';

const addon = loadNativeAddon();
const f = (length: number) => new Float32Array(length);
const i32 = (...values: number[]) => Int32Array.from(values);
const base = addon.packBase(f(6), 2, 3, 'float32');
const adamW = {
  learningRate: 1,
  beta1: 0,
  beta2: 0,
  epsilon: 1,
  weightDecay: 0,
  correction1: 1,
  correction2: 1,
  gradientScale: 1,
};
const muon = {
  ...{ learningRate: 1, momentum: 0, weightDecay: 0, gradientScale: 1 },
  precision: 'float32' as const,
};
/** A single matrix of `length` elements. */
const matrices = (length: number) => ({
  parameters: [f(length)],
  gradients: [f(length)],
  moments: { values: [f(length)], codes: null, scales: null },
});
const shared = f(12);
const newFolder = temporaryFolders();
const oneMember = openShared();
const missingFolder = '/no/such/folder';

type Changed = Record<string, unknown>;

/** A valid layer of a half: frozen, with an adapter of rank 1. */
const adapted = (base: PackedBase, inFeatures: number, outFeatures: number): NativeLayer => ({
  base,
  weight: null,
  adapter: { rank: 1, a: f(inFeatures), b: f(outFeatures), scale: 1, graph: 'separate', mask: null },
  bias: null,
});
const trained = (inFeatures: number, outFeatures: number): NativeLayer => ({
  base: null,
  weight: f(inFeatures * outFeatures),
  adapter: null,
  bias: null,
});
const gradientsOf = ({ weight, adapter, bias }: NativeLayer): NativeLayerGradients => ({
  weight: weight && f(weight.length),
  a: adapter && f(adapter.a.length),
  b: adapter && f(adapter.b.length),
  scale: null,
  bias: bias && f(bias.length),
});
/** The layer with other fields in its adapter. */
const withAdapter = (layer: NativeLayer, changes: Changed): NativeLayer => ({
  ...layer,
  adapter: { ...layer.adapter, ...changes } as NativeAdapter,
});

const released = addon.packBase(f(6), 2, 3, 'float32');
addon.releaseBase(released);
const downBase = addon.packBase(f(6), 3, 2, 'float32');
/** Hidden size 2 and intermediate size 3, two rows; `gate` is adapted, `up` fully trained. */
const gate = adapted(base, 2, 3);
const mlpLayers = { gate, up: trained(2, 3), down: adapted(downBase, 3, 2) };
const common = { gain: f(2), epsilon: 1e-5, precision: 'float32', compact: false, apart: false } as const;
const mlpHalf = { shape: { rows: 2, hidden: 2, intermediate: 3 }, ...common, ...mlpLayers };
const mlpLength = addon.mlpHalfStateLength(mlpHalf);

/** Changes apply to fields of the half, or to other arguments. */
function mlpForward(changes: Changed = {}): void {
  const { y, state, x } = { y: f(4), state: f(mlpLength), x: f(4), ...changes } as Record<
    string,
    Float32Array
  >;
  addon.mlpHalfForward({ ...mlpHalf, ...changes }, x!, y!, state!);
}

function mlpBackward(changes: Changed = {}, gradients: Changed = {}): void {
  const { gate, up, down } = mlpLayers;
  const { dy, state } = { dy: f(4), state: f(mlpLength), ...changes } as Record<string, Float32Array>;
  const given = {
    dx: f(4),
    gain: f(2),
    gate: gradientsOf(gate),
    up: gradientsOf(up),
    down: gradientsOf(down),
  };
  addon.mlpHalfBackward({ ...mlpHalf, ...changes }, f(4), state!, dy!, { ...given, ...gradients });
}

/** Hidden size 2, two heads of 2 that share one key head, two positions of one sequence; all layers fully trained. */
const attentionLayers = {
  q: { ...trained(2, 4), bias: f(4) },
  k: trained(2, 2),
  v: { ...trained(2, 2), bias: f(2) },
  o: trained(4, 2),
};
const attentionShape = { batch: 1, time: 2, hidden: 2, heads: 2, kvHeads: 1, headDim: 2 };
const attentionHalf = {
  ...{ shape: attentionShape, ...common, cos: f(2), sin: f(2), headNorms: null, documents: null },
  ...attentionLayers,
};
const attentionLength = addon.attentionHalfStateLength(attentionHalf);

function attentionForward(changes: Changed = {}): void {
  const given = { y: f(4), state: f(attentionLength), x: f(4), ...changes } as Record<string, Float32Array>;
  addon.attentionHalfForward({ ...attentionHalf, ...changes }, given['x']!, given['y']!, given['state']!);
}

function attentionBackward(changes: Changed = {}, gradients: Changed = {}): void {
  const { q, k, v, o } = attentionLayers;
  const given = { dy: f(4), state: f(attentionLength), ...changes } as Record<string, Float32Array>;
  const all = {
    ...{ dx: f(4), gain: f(2), headNorms: null },
    ...{ q: gradientsOf(q), k: gradientsOf(k), v: gradientsOf(v), o: gradientsOf(o) },
    ...gradients,
  };
  addon.attentionHalfBackward({ ...attentionHalf, ...changes }, f(4), given['state']!, given['dy']!, all);
}

/** Each call has one mistake; the message names function, argument, what was expected and what was found. */
const dropout = { share: 0.5, seed: 1, step: 0, firstSequence: 0, layer: 0, sequenceLength: 3 };

/** Shared memory of a run with one member. */
function openShared() {
  const path = join(newFolder(), 'shared');
  writeFileSync(path, Buffer.alloc(2 * 65_536));
  return addon.openSharedMemory(openSync(path, 'r+'), 0, 1);
}

const mistakes: [call: () => unknown, message: string][] = [
  [() => (addon.matmul as (...args: unknown[]) => void)(f(1), f(1)), 'matmul: expected 5 arguments, got 2'],
  [
    () =>
      addon.matmul(
        f(1),
        [1] as never,
        f(1),
        { batch: 1, m: 1, n: 1, k: 1, transposeA: false, transposeB: false },
        'float32',
      ),
    'matmul: a must be a Float32Array, got object',
  ],
  [
    () =>
      addon.matmul(
        f(1),
        new Float64Array(1) as never,
        f(1),
        { batch: 1, m: 1, n: 1, k: 1, transposeA: false, transposeB: false },
        'float32',
      ),
    'matmul: a must be a Float32Array, got Float64Array',
  ],
  [
    () =>
      addon.matmul(
        f(4),
        f(6),
        f(5),
        { batch: 1, m: 2, n: 2, k: 3, transposeA: false, transposeB: false },
        'float32',
      ),
    'matmul: b must hold batch * k * n = 6 elements, got 5',
  ],
  [
    () =>
      addon.matmul(
        f(4),
        f(6),
        f(6),
        { batch: 0, m: 2, n: 2, k: 3, transposeA: false, transposeB: false },
        'float32',
      ),
    'matmul: shape.batch must be an integer of at least 1, got 0',
  ],
  [
    () =>
      addon.matmul(
        f(4),
        f(6),
        f(6),
        { batch: 1, m: 2, n: 2.5, k: 3, transposeA: false, transposeB: false },
        'float32',
      ),
    'matmul: shape.n must be an integer of at least 1, got 2.5',
  ],
  [
    () =>
      addon.matmul(
        f(4),
        f(6),
        f(6),
        { batch: 1, m: 2, n: 2, k: NaN, transposeA: false, transposeB: false },
        'float32',
      ),
    'matmul: shape.k must be an integer of at least 1, got nan',
  ],
  [
    () =>
      addon.matmul(
        f(4),
        f(6),
        f(6),
        { batch: 2 ** 31 - 1, m: 2 ** 31 - 1, n: 2 ** 31 - 1, k: 3, transposeA: false, transposeB: false },
        'float32',
      ),
    'matmul: batch * m * n does not fit 64 bits',
  ],
  [
    () =>
      addon.matmul(
        f(4),
        f(6),
        f(6),
        { batch: 1, m: 2, n: 2, k: 3, transposeA: 0 as never, transposeB: false },
        'float32',
      ),
    'matmul: shape.transposeA must be a boolean, got number',
  ],
  [
    () =>
      addon.matmul(
        f(4),
        f(6),
        f(6),
        { batch: 1, m: 2, n: 2, k: 3, transposeA: false, transposeB: false },
        'float16' as never,
      ),
    "matmul: precision must be 'float32' or 'bfloat16', got 'float16'",
  ],
  [
    () =>
      addon.matmul(
        shared.subarray(2, 6),
        shared.subarray(0, 3),
        f(12),
        { batch: 1, m: 1, n: 4, k: 3, transposeA: false, transposeB: false },
        'float32',
      ),
    'matmul: c must not overlap a',
  ],
  [
    () => addon.packBase(f(6), 2, 2, 'float32'),
    'packBase: w must hold inFeatures * outFeatures = 4 elements, got 6',
  ],
  [
    () => addon.packedBaseBytes({} as PackedBase),
    'packedBaseBytes: base must be a handle made by packBase, got object',
  ],
  [
    () =>
      addon.linearForward(f(3), f(1), f(2), { base, adapter: { rank: 1, a: f(2), b: f(4), scale: 1 } }, 1),
    'linearForward: layer.adapter.b must hold rank * outFeatures = 3 elements, got 4',
  ],
  [
    () =>
      addon.linearBackward(
        f(2),
        f(2),
        f(3),
        f(3),
        f(2),
        f(2),
        { base, adapter: { rank: 1, a: f(2), b: f(3), scale: 1 } },
        1,
      ),
    'linearBackward: xa must hold rows * rank = 1 elements, got 2',
  ],
  [
    () => addon.mergeAdapter(f(6), f(6), f(2), f(3), '1' as never, 2, 1, 3),
    'mergeAdapter: scale must be a number, got string',
  ],
  [
    () => addon.rmsNormForward(f(6), f(3), f(6), f(3), 2, 3, 1e-5),
    'rmsNormForward: rstd must hold rows = 2 elements, got 3',
  ],
  [
    () => addon.rmsNormBackward(f(6), f(3), f(6), f(6), f(2), f(2), 2, 3),
    'rmsNormBackward: gain must hold dim = 3 elements, got 2',
  ],
  [
    () =>
      addon.rotary(
        f(3),
        f(3),
        { cos: f(9), sin: f(9) },
        { batch: 1, time: 1, heads: 1, headDim: 3, firstPosition: 0 },
        false,
      ),
    'rotary: shape.headDim must be even, got 3',
  ],
  [
    () =>
      addon.rotary(
        f(8),
        f(8),
        { cos: f(3), sin: f(8) },
        { batch: 1, time: 2, heads: 1, headDim: 4, firstPosition: 1 },
        false,
      ),
    'rotary: angles.cos must hold at least (firstPosition + time) * headDim / 2 = 6 elements, got 3',
  ],
  [
    () =>
      addon.attentionForward(
        f(6),
        f(3),
        { q: f(6), k: f(4), v: f(4) },
        { batch: 1, time: 1, heads: 3, kvHeads: 2, headDim: 2, scale: 1, documents: null },
        'float32',
      ),
    'attentionForward: heads must be a multiple of kvHeads, got 3 and 2',
  ],
  [
    () =>
      addon.attentionBackward(
        { q: f(4), k: f(2), v: f(2) },
        f(4),
        { q: f(4), k: f(2), v: f(2) },
        f(4),
        f(1),
        { batch: 1, time: 1, heads: 2, kvHeads: 1, headDim: 2, scale: 1, documents: null },
        'float32',
      ),
    'attentionBackward: logSumExp must hold batch * heads * time = 2 elements, got 1',
  ],
  [
    () => addon.repackBase(base, f(5)),
    'repackBase: w must hold inFeatures * outFeatures = 6 elements, got 5',
  ],
  [() => addon.repackBase(released, f(6)), 'repackBase: base has been released'],
  [
    () => addon.packMerged(base, f(6), f(2), f(4), 1, 1),
    'packMerged: b must hold rank * outFeatures = 3 elements, got 4',
  ],
  [
    () => addon.packMerged(base, f(6), f(3), f(3), 1, 1),
    'packMerged: a must hold inFeatures * rank = 2 elements, got 3',
  ],
  [
    () => addon.packMerged(base, f(6), f(0), f(0), 1, 0),
    'packMerged: rank must be an integer of at least 1, got 0',
  ],
  [
    () => (addon.mlpHalfForward as (...args: unknown[]) => void)(mlpHalf),
    'mlpHalfForward: expected 4 arguments, got 1',
  ],
  [
    () => addon.mlpHalfForward(null as never, f(4), f(4), null),
    'mlpHalfForward: half must be an object, got null',
  ],
  [() => mlpForward({ y: f(3) }), 'mlpHalfForward: y must hold rows * hidden = 4 elements, got 3'],
  [() => mlpForward({ x: f(5) }), 'mlpHalfForward: x must hold rows * hidden = 4 elements, got 5'],
  [
    () => mlpForward({ state: f(mlpLength - 1) }),
    `mlpHalfForward: state must hold at least floats of the state = ${mlpLength} elements, got ${mlpLength - 1}`,
  ],
  [
    () => mlpForward({ shape: { rows: 2, hidden: 2.5, intermediate: 3 } }),
    'mlpHalfForward: half.shape.hidden must be an integer of at least 1, got 2.5',
  ],
  [
    () => mlpForward({ shape: { rows: 2 } }),
    'mlpHalfForward: half.shape.hidden must be a number, got undefined',
  ],
  [() => mlpForward({ gain: f(3) }), 'mlpHalfForward: half.gain must hold hidden = 2 elements, got 3'],
  [() => mlpForward({ epsilon: '1' }), 'mlpHalfForward: half.epsilon must be a number, got string'],
  [() => mlpForward({ down: adapted(base, 3, 2) }), 'mlpHalfForward: down.base must be 3 x 2, got 2 x 3'],
  [() => mlpForward({ gate: { ...gate, base: released } }), 'mlpHalfForward: base has been released'],
  [
    () => mlpForward({ gate: { ...gate, base: f(6) } }),
    'mlpHalfForward: half.gate.base must be a handle made by packBase, got Float32Array',
  ],
  [
    () => mlpForward({ up: { ...mlpLayers.up, weight: f(5) } }),
    'mlpHalfForward: half.up.weight must hold inFeatures * outFeatures = 6 elements, got 5',
  ],
  [
    () => mlpForward({ up: { ...mlpLayers.up, weight: null } }),
    'mlpHalfForward: half.up.weight must be a Float32Array, got null',
  ],
  [
    () => mlpForward({ up: { ...mlpLayers.up, adapter: gate.adapter } }),
    'mlpHalfForward: up.adapter must be null where the weight is trained',
  ],
  [
    () => mlpForward({ gate: withAdapter(gate, { a: f(1) }) }),
    'mlpHalfForward: half.gate.adapter.a must hold inFeatures * rank = 2 elements, got 1',
  ],
  [
    () => mlpForward({ gate: withAdapter(gate, { b: f(2) }) }),
    'mlpHalfForward: half.gate.adapter.b must hold rank * outFeatures = 3 elements, got 2',
  ],
  [
    () => mlpForward({ gate: withAdapter(gate, { rank: 0 }) }),
    'mlpHalfForward: half.gate.adapter.rank must be an integer of at least 1, got 0',
  ],
  [
    () => mlpForward({ gate: withAdapter(gate, { graph: 'dense' }) }),
    "mlpHalfForward: half.gate.adapter.graph must be 'separate', 'merged' or 'weightGradient', got 'dense'",
  ],
  [
    () => mlpForward({ gate: withAdapter(gate, { graph: 1 }) }),
    "mlpHalfForward: half.gate.adapter.graph must be 'separate', 'merged' or 'weightGradient', got number",
  ],
  [
    () => mlpForward({ precision: 'int8' }),
    "mlpHalfForward: half.precision must be 'float32' or 'bfloat16', got 'int8'",
  ],
  [
    () => mlpForward({ gate: withAdapter(gate, { mask: f(4) }) }),
    'mlpHalfForward: gate.adapter.mask must be null in a half that is not apart',
  ],
  [
    () => mlpForward({ apart: true, gate: withAdapter(gate, { mask: f(3) }) }),
    'mlpHalfForward: half.gate.adapter.mask must hold rows * inFeatures = 4 elements, got 3',
  ],
  [
    () => mlpForward({ apart: true, gate: withAdapter(gate, { graph: 'merged' }) }),
    'mlpHalfForward: gate.adapter.graph must be separate in a half that is apart',
  ],
  [
    () => mlpForward({ apart: true, compact: true }),
    'mlpHalfForward: half.compact must be false in a half that is apart',
  ],
  [
    () => mlpBackward({}, { gate: { ...gradientsOf(gate), scale: f(1) } }),
    'mlpHalfBackward: gradients.gate.scale must be null but beside an adapter of a half that is apart',
  ],
  [
    () => mlpBackward({ apart: true }, { gate: { ...gradientsOf(gate), scale: f(2) } }),
    'mlpHalfBackward: gradients.gate.scale must hold 1 = 1 elements, got 2',
  ],
  [() => mlpForward({ compact: 1 }), 'mlpHalfForward: half.compact must be a boolean, got number'],
  [
    () => mlpForward({ y: shared.subarray(0, 4), x: shared.subarray(3, 7) }),
    'mlpHalfForward: y must not overlap x',
  ],
  [
    () => mlpBackward({}, { dx: f(5) }),
    'mlpHalfBackward: gradients.dx must hold rows * hidden = 4 elements, got 5',
  ],
  [
    () => mlpBackward({}, { gain: f(3) }),
    'mlpHalfBackward: gradients.gain must hold hidden = 2 elements, got 3',
  ],
  [() => mlpBackward({ dy: f(3) }), 'mlpHalfBackward: dy must hold rows * hidden = 4 elements, got 3'],
  [
    () => mlpBackward({ state: f(0) }),
    `mlpHalfBackward: state must hold at least floats of the state = ${mlpLength} elements, got 0`,
  ],
  [() => mlpBackward({ state: null }), 'mlpHalfBackward: state must be a Float32Array, got null'],
  [
    () => mlpBackward({}, { gate: { ...gradientsOf(gate), weight: f(6) } }),
    'mlpHalfBackward: gradients.gate.weight must be null beside an adapter',
  ],
  [
    () => mlpBackward({}, { gate: { ...gradientsOf(gate), a: f(3) } }),
    'mlpHalfBackward: gradients.gate.a must hold inFeatures * rank = 2 elements, got 3',
  ],
  [
    () => mlpBackward({}, { gate: { ...gradientsOf(gate), b: null } }),
    'mlpHalfBackward: gradients.gate.b must be there where there is an adapter',
  ],
  [
    () => mlpBackward({}, { up: { ...gradientsOf(mlpLayers.up), b: f(3) } }),
    'mlpHalfBackward: gradients.up.a and .b must be null without an adapter',
  ],
  [
    () => mlpBackward({}, { up: { ...gradientsOf(mlpLayers.up), bias: f(3) } }),
    'mlpHalfBackward: gradients.up.bias must be null where there is no bias',
  ],
  [
    () =>
      mlpBackward({}, { gate: { ...gradientsOf(gate), a: shared.subarray(0, 2), b: shared.subarray(1, 4) } }),
    'mlpHalfBackward: gradients.gate.a must not overlap gradients.gate.b',
  ],
  [
    () => addon.mlpHalfStateLength({ ...mlpHalf, gate: withAdapter(gate, { rank: -1 }) }),
    'mlpHalfStateLength: half.gate.adapter.rank must be an integer of at least 1, got -1',
  ],
  [
    () => attentionForward({ x: f(5) }),
    'attentionHalfForward: x must hold rows * hidden = 4 elements, got 5',
  ],
  [
    () => attentionForward({ cos: f(1) }),
    'attentionHalfForward: half.cos must hold at least time * headDim / 2 = 2 elements, got 1',
  ],
  [
    () => attentionForward({ sin: f(1) }),
    'attentionHalfForward: half.sin must hold at least time * headDim / 2 = 2 elements, got 1',
  ],
  [
    () => attentionForward({ sin: null }),
    'attentionHalfForward: half.cos and half.sin must both be null, or neither',
  ],
  [
    () => attentionForward({ documents: Int32Array.of(0) }),
    'attentionHalfForward: half.documents must hold batch * time = 2 elements, got 1',
  ],
  [
    () => attentionForward({ documents: Int32Array.of(0, 2) }),
    'attentionHalfForward: half.documents[1] must be 0, as before it, or 1, got 2',
  ],
  [() => attentionForward({ documents: f(2) }), 'attentionHalfForward: half.documents must be an Int32Array'],
  [
    () => attentionForward({ headNorms: { q: f(2), k: f(3) } }),
    'attentionHalfForward: half.headNorms.k must hold headDim = 2 elements, got 3',
  ],
  [
    () => attentionBackward({}, { headNorms: { q: f(2), k: f(2) } }),
    'attentionHalfBackward: gradients.headNorms must be null where the half has none, and only there',
  ],
  [
    () => attentionForward({ shape: { ...attentionShape, kvHeads: 3 } }),
    'attentionHalfForward: heads must be a multiple of kvHeads, got 2 and 3',
  ],
  [
    () => attentionForward({ k: { ...attentionLayers.k, bias: f(3) } }),
    'attentionHalfForward: half.k.bias must hold outFeatures = 2 elements, got 3',
  ],
  [
    () => attentionForward({ o: { ...attentionLayers.o, bias: f(2) } }),
    'attentionHalfForward: half.o.bias must be null: queries, keys and values alone have one',
  ],
  [
    () => attentionBackward({}, { v: { ...gradientsOf(attentionLayers.v), bias: f(0) } }),
    'attentionHalfBackward: gradients.v.bias must hold outFeatures = 2 elements, got 0',
  ],
  [
    () => attentionForward({ shape: { ...attentionShape, headDim: 3 } }),
    'attentionHalfForward: half.shape.headDim must be even, got 3',
  ],
  [
    () => attentionForward({ k: trained(2, 4) }),
    'attentionHalfForward: half.k.weight must hold inFeatures * outFeatures = 4 elements, got 8',
  ],
  [
    () => attentionForward({ o: adapted(base, 2, 3) }),
    'attentionHalfForward: o.base must be 4 x 2, got 2 x 3',
  ],
  [
    () => attentionForward({ state: f(attentionLength - 1) }),
    `attentionHalfForward: state must hold at least floats of the state = ${attentionLength} elements, got ${attentionLength - 1}`,
  ],
  [
    () => attentionBackward({ dy: f(6) }),
    'attentionHalfBackward: dy must hold rows * hidden = 4 elements, got 6',
  ],
  [
    () => attentionBackward({}, { k: { ...gradientsOf(attentionLayers.k), weight: f(3) } }),
    'attentionHalfBackward: gradients.k.weight must hold inFeatures * outFeatures = 4 elements, got 3',
  ],
  [
    () => attentionBackward({ state: f(attentionLength - 1) }),
    `attentionHalfBackward: state must hold at least floats of the state = ${attentionLength} elements, got ${attentionLength - 1}`,
  ],
  [
    () => attentionBackward({}, { dx: shared.subarray(0, 4), gain: shared.subarray(3, 5) }),
    'attentionHalfBackward: gradients.dx must not overlap gradients.gain',
  ],
  [
    () => addon.attentionHalfStateLength({ ...attentionHalf, shape: { ...attentionShape, time: 0 } }),
    'attentionHalfStateLength: half.shape.time must be an integer of at least 1, got 0',
  ],
  [() => addon.mapFloats(1 as never, 4), 'mapFloats: folder must be a string, got number'],
  [() => addon.mapFloats('.', 0), 'mapFloats: count must be an integer of at least 1, got 0'],
  [
    () => addon.mapFloats(missingFolder, 4),
    `mapFloats: no file can be made in ${missingFolder}: No such file or directory`,
  ],
  [() => addon.releasePages([1] as never), 'releasePages: mapped must be a Float32Array, got object'],
  [() => addon.releasePages(f(4096)), 'releasePages: only pages of mapped memory can be released'],
  [() => addon.freeBuffer(f(4) as never), 'freeBuffer: buffer must be an ArrayBuffer, got Float32Array'],
  [
    () => addon.swigluForward(f(3), f(3), f(2)),
    'swigluForward: up must hold length of h = 3 elements, got 2',
  ],
  [
    () => addon.swigluForward(f(3), shared.subarray(0, 3), shared.subarray(0, 2)),
    'swigluForward: up must hold length of h = 3 elements, got 2',
  ],
  [
    () => addon.swigluBackward(f(3), f(3), f(4), f(3), f(3)),
    'swigluBackward: dh must hold length of dgate = 3 elements, got 4',
  ],
  [
    () => addon.embeddingForward(f(4), f(6), i32(0, 3), 2, 3, 2),
    'embeddingForward: ids[1] must be in [0, 3), got 3',
  ],
  [
    () => addon.embeddingBackward(f(6), f(4), f(2) as never, 2, 3, 2),
    'embeddingBackward: ids must be an Int32Array, got Float32Array',
  ],
  [
    () =>
      addon.headCrossEntropy(
        f(2),
        null,
        f(6),
        f(4),
        f(6),
        i32(0, 1),
        { rows: 2, hidden: 2, vocabulary: 3, gradientScale: 1, inInt8: false },
        'float32',
      ),
    'headCrossEntropy: dhead must be null when dx is null',
  ],
  [
    () =>
      addon.headCrossEntropy(
        f(2),
        null,
        null,
        f(4),
        f(6),
        i32(0, -2),
        { rows: 2, hidden: 2, vocabulary: 3, gradientScale: 1, inInt8: false },
        'float32',
      ),
    'headCrossEntropy: targets[1] must be in [-1, 3), got -2',
  ],
  [() => addon.sumSquares(null as never), 'sumSquares: arrays must be an Array, got null'],
  [
    () => addon.sumSquares([f(2), new Float64Array(2) as never]),
    'sumSquares: arrays[1] must be a Float32Array, got Float64Array',
  ],
  [
    () => addon.adamWInPlace([f(2)], [f(2)], [f(2)], [f(2)], { ...adamW, beta2: undefined as never }),
    'adamWInPlace: options.beta2 must be a number, got undefined',
  ],
  [
    () => addon.adamWInPlace([f(3), f(2)], [f(3), f(2)], [f(3), f(1)], [f(3), f(2)], adamW),
    'adamWInPlace: secondMoments[1] must hold length of its parameter = 2',
  ],
  [
    () => addon.adamWInPlace([f(3), f(2)], [f(3)], [f(3), f(2)], [f(3), f(2)], adamW),
    'adamWInPlace: firstMoments must hold as many arrays as parameters = 2, got 1',
  ],
  [
    () => addon.adamWInPlace([shared], [f(12)], [f(12)], [shared], adamW),
    'adamWInPlace: parameters[0] must not overlap gradients[0]',
  ],
  [
    () =>
      addon.codedAdamWInPlace(
        [f(257)],
        [new Int8Array(257)],
        [f(1)],
        [new Uint8Array(257)],
        [f(2)],
        [f(257)],
        adamW,
      ),
    'codedAdamWInPlace: firstScales[0] must hold blocks of its parameter = 2 elements, got 1',
  ],
  [
    () => addon.codedAdamWInPlace([f(1)], [f(1) as never], [f(1)], [], [], [], adamW),
    'codedAdamWInPlace: firstCodes[0] must be an Int8Array, got Float32Array',
  ],
  [() => addon.addInPlace(f(2), f(3)), 'addInPlace: x must hold length of accumulator = 2 elements, got 3'],
  [
    () => addon.singularValues(f(3), 2, 2),
    'singularValues: matrix must hold rows * columns = 4 elements, got 3',
  ],
  [() => addon.measurePeak('float32', 0), 'measurePeak: milliseconds must be in (0, 60000]'],
  [
    () => addon.configure({ instructionSet: 'avx1024' as never, threads: 1 }),
    "configure: options.instructionSet 'avx1024' is not offered by this CPU, which has ",
  ],
  [
    () => addon.dropoutMask(f(6), { ...dropout, sequenceLength: 4 }),
    'dropoutMask: mask must hold whole sequences of options.sequenceLength = 4 elements, got 6',
  ],
  [
    () => addon.dropoutMask(f(6), { ...dropout, share: 1 }),
    'dropoutMask: options.share must be in [0, 1), got 1.0',
  ],
  [
    () => addon.dropoutMask(f(6), { ...dropout, step: -1 }),
    'dropoutMask: options.step must be an integer of at least 0, got -1',
  ],
  [
    () => addon.muonInPlace({ rows: 2, columns: 3 }, matrices(5), muon),
    'muonInPlace: matrices.parameters[0] must hold rows * columns = 6 elements, got 5',
  ],
  [
    () => addon.muonInPlace({ rows: 2, columns: 3 }, { ...matrices(6), gradients: [f(6), f(6)] }, muon),
    'muonInPlace: gradients must hold as many arrays as parameters = 1, got 2',
  ],
  [
    () => addon.muonInPlace({ rows: 2, columns: 3 }, { ...matrices(6), gradients: null }, muon),
    'muonInPlace: matrices.gradients must be there',
  ],
  [
    () =>
      addon.muonInPlace(
        { rows: 2, columns: 3 },
        { ...matrices(6), moments: { values: null, codes: [new Int8Array(6)], scales: [f(2)] } },
        muon,
      ),
    'muonInPlace: matrices.moments.scales[0] must hold blocks of its parameter = 1 elements, got 2',
  ],
  [
    () => addon.muonInPlace({ rows: 2, columns: 3 }, matrices(6), { ...muon, precision: 'int8' as never }),
    "muonInPlace: options.precision must be 'float32' or 'bfloat16', got 'int8'",
  ],
  [
    () =>
      addon.loraMuonInPlace({ inFeatures: 2, outFeatures: 3, rank: 3 }, matrices(6), matrices(9), 1, muon),
    'loraMuonInPlace: shape.rank must be at most the smaller side = 2, got 3',
  ],
  [
    () =>
      addon.loraMuonInPlace({ inFeatures: 2, outFeatures: 3, rank: 1 }, matrices(2), matrices(3), 0, muon),
    'loraMuonInPlace: scale must be finite and not 0, got 0.0',
  ],
  [
    () =>
      addon.apolloMiniInPlace(
        { rows: 2, columns: 3 },
        {
          ...{ parameters: [f(6)], gradients: [f(6)], projections: [f(3)] },
          ...{ first: [f(3)], second: [f(3)], norms: [f(1)] },
        },
        adamW,
      ),
    'apolloMiniInPlace: matrices.projections[0] must hold the smaller side = 2 elements, got 3',
  ],
  [
    () => addon.open({ instructionSet: 'avx1024' as never, threads: 1 }),
    "open: options.instructionSet 'avx1024' is not offered by this CPU, which has ",
  ],
  [
    () => addon.configure({ instructionSet: 'portable', threads: 0 }),
    'configure: options.threads must be an integer from 1 to 1024, got 0',
  ],
  [() => addon.openSharedMemory(0, 2, 2), 'openSharedMemory: rank must be below size 2, got 2'],
  [() => addon.openSharedMemory(0, 0, 0), 'openSharedMemory: size must be an integer of at least 1, got 0'],
  [() => addon.openMpi(3 as never), 'openMpi: library must be a string, got number'],
  [
    () => addon.openMpi('/nowhere/libmpi.so'),
    'openMpi: /nowhere/libmpi.so: cannot open shared object file: No such file or directory',
  ],
  [
    () => void addon.exchangeSum({} as never, f(4), 'float32', 4),
    'exchangeSum: exchange must be a handle made by openSharedMemory, got object',
  ],
  [
    () => void addon.exchangeSum(oneMember, [1] as never, 'float32', 1),
    'exchangeSum: values must be a Float32Array, got object',
  ],
  [
    () => void addon.exchangeSum(oneMember, f(4), 'float16' as never, 4),
    "exchangeSum: type must be 'float32' or 'bfloat16', got 'float16'",
  ],
  [
    () => void addon.exchangeSum(oneMember, f(4), 'float32', 5),
    'exchangeSum: written must be at most 4, got 5',
  ],
  [() => addon.exchangeReach(oneMember, -1), 'exchangeReach: count must be an integer of at least 0, got -1'],
  [
    () => addon.exchangeAbandon({} as never),
    'exchangeAbandon: exchange must be a handle made by openSharedMemory, got object',
  ],
  [
    () => void addon.exchangeGather(oneMember, new Uint8Array(3), new Uint8Array(4)),
    'exchangeGather: all must hold size * own.length = 4 elements, got 3',
  ],
  [
    () => addon.exchangeLeave({} as never),
    'exchangeLeave: exchange must be a handle made by openSharedMemory, got object',
  ],
];

describe('a wrong argument is refused before anything is computed', () => {
  it.each(mistakes.map(([call, message]) => ({ call, message })))('$message', ({ call, message }) => {
    expect(call).toThrow(message);
  });

  it('with a class and a code of its own for types and for values', () => {
    expect(() => addon.sumSquares(1 as never)).toThrow(TypeError);
    expect(() => addon.addInPlace(f(2), f(3))).toThrow(RangeError);
    expect(() => addon.addInPlace(f(2), f(3))).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARG_VALUE' }),
    );
  });

  it('and leaves the outputs as they were', () => {
    const y = f(4).fill(7);
    expect(() => addon.embeddingForward(y, f(6), i32(0, 3), 2, 3, 2)).toThrow();
    expect([...y]).toEqual([7, 7, 7, 7]);
  });

  it('is tried on every function that takes arrays', () => {
    const tried = new Set(mistakes.map(([, message]) => message.split(':')[0]));
    const untried = Object.keys(addon).filter((name) => !tried.has(name));
    expect(untried.sort()).toEqual(['allocations', 'callCounts', 'describe', 'releaseBase', 'trimHeap']);
  });
});

describe('the right arguments of a half', () => {
  // The same calls without the mistakes: otherwise all might be refused for another reason.
  it.each([
    ['mlpHalfForward', mlpForward],
    ['mlpHalfBackward', mlpBackward],
    ['attentionHalfForward', attentionForward],
    ['attentionHalfBackward', attentionBackward],
  ] as const)('are taken by %s', (_, call) => {
    call();
  });

  it('leave the outputs as they were when one of them is wrong', () => {
    const [y, state] = [f(4).fill(7), f(mlpLength).fill(7)];
    expect(() => mlpForward({ y, state, compact: 'no' })).toThrow();
    expect([...y, ...state].every((value) => value === 7)).toBe(true);
  });

  it('do not include a base that was packed for other kernels', () => {
    const { instructionSets } = addon.describe();
    const [first, last] = [instructionSets[0]!, instructionSets.at(-1)!];
    if (first === last) return;
    addon.configure({ instructionSet: last, threads: 1 });
    const refusal = 'base was packed for another instruction set than the one configured now';
    expect(() => mlpForward()).toThrow(`mlpHalfForward: ${refusal}`);
    expect(() => mlpBackward()).toThrow(`mlpHalfBackward: ${refusal}`);
    expect(() => addon.repackBase(base, f(6))).toThrow(`repackBase: ${refusal}`);
    expect(() => addon.packMerged(base, f(6), f(2), f(3), 1, 1)).toThrow(`packMerged: ${refusal}`);
    addon.configure({ instructionSet: first, threads: 1 });
    mlpForward();
  });
});

describe('mapped floats', () => {
  // Several pages, and a part of one.
  const count = 5 * 4096 + 7;
  const ramp = Float32Array.from({ length: count }, (_, i) => i + 0.5);

  it('are zeros at first, keep their values when their pages are released, and leave no name in the folder', () => {
    const folder = newFolder();
    const mapped = addon.mapFloats(folder, count);
    expect(mapped).toHaveLength(count);
    expect(mapped.every((value) => value === 0)).toBe(true);
    mapped.set(ramp);
    addon.releasePages(mapped);
    expect(mapped).toEqual(ramp);
    // A range that begins and ends within pages, then the whole again.
    addon.releasePages(mapped.subarray(1000, 9000));
    addon.releasePages(mapped);
    mapped[3] = -1;
    addon.releasePages(mapped);
    expect(mapped[3]).toBe(-1);
    expect(mapped.subarray(4)).toEqual(ramp.subarray(4));
    expect(readdirSync(folder)).toEqual([]);
  });

  it('are the only ones whose pages are released: other memory is refused and loses nothing', () => {
    const values = ramp.slice();
    expect(() => addon.releasePages(values)).toThrow(
      'releasePages: only pages of mapped memory can be released',
    );
    expect(() => addon.releasePages(f(0))).toThrow(
      'releasePages: only pages of mapped memory can be released',
    );
    expect(values).toEqual(ramp);
  });

  it('are refused where the disk is full, with the folder named, and take nothing', (context) => {
    const folder = join(newFolder(), 'small');
    mkdirSync(folder);
    const { status } = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', folder]);
    if (status !== 0) return context.skip('A file system of a chosen size can be mounted by root alone');
    try {
      expect(() => addon.mapFloats(folder, 2 ** 15)).toThrow(
        `mapFloats: no ${2 ** 17} bytes can be mapped in ${folder}: No space left on device`,
      );
      expect(readdirSync(folder)).toEqual([]);
      addon.mapFloats(folder, 2 ** 13).fill(1);
    } finally {
      // Arrays that are still mapped keep the file system busy until they are garbage-collected.
      spawnSync('umount', ['--lazy', folder]);
    }
  });
});

describe('the machine', () => {
  it('is described with its sets, best first, and the CPUs this process may use', () => {
    const { instructionSets, threadsMax, cpuModel } = addon.describe();
    expect(instructionSets.at(-1)).toBe('portable');
    expect(threadsMax).toBeGreaterThanOrEqual(1);
    expect(cpuModel).not.toBe('');
    // Its bfloat16 instruction is slower than widening on Intel's processors.
    const [widening, pairs] = ['avx512', 'avx512bf16'].map((set) =>
      instructionSets.findIndex((name) => name === set),
    );
    if (pairs! >= 0) expect(widening! < pairs!).toBe(cpuModel.includes('Intel'));
  });

  it.runIf(process.platform === 'linux')('counts the CPUs it is pinned to', () => {
    const script = `console.log(require(${JSON.stringify(addonPath())}).describe().threadsMax)`;
    expect(
      execFileSync('taskset', ['-c', '0', process.execPath, '-e', script], { encoding: 'utf8' }).trim(),
    ).toBe('1');
  });

  it('lets a process end at once, whatever its threads are doing', () => {
    const script = `const a = require(${JSON.stringify(addonPath())});
      a.configure({ instructionSet: 'portable', threads: 8 });
      const x = new Float32Array(1 << 20);
      for (let i = 0; i < 20; i++) a.addInPlace(x, new Float32Array(1 << 20));
      a.configure({ instructionSet: 'portable', threads: 3 });
      a.addInPlace(x, new Float32Array(1 << 20));`;
    const { status, signal } = spawnSync(process.execPath, ['-e', script], { timeout: patienceMs });
    expect({ status, signal }).toEqual({ status: 0, signal: null });
  });
});

it('building without a compiler says what to install', () => {
  const script = fileURLToPath(new URL('../../engine/native/build.mjs', import.meta.url));
  const { status, stderr } = spawnSync(process.execPath, [script], {
    env: { ...process.env, CXX: 'no-such-compiler' },
    encoding: 'utf8',
  });
  expect(status).toBe(1);
  expect(stderr).toContain('No C++ compiler found (tried no-such-compiler). Install g++ 11 or newer');
});

function addonPath(): string {
  return fileURLToPath(new URL('../../engine/native/build/relora.node', import.meta.url));
}
