import { readFileSync } from 'node:fs';
import ts from 'typescript';

/** [rows, in, out, rank, graph, is trained] of each layer of a half, from the struct passed to a call. */
function layersOf(half) {
  const { shape } = half;
  const rows = shape.rows ?? shape.batch * shape.time;
  const { hidden } = shape;
  const layer = ({ base, adapter }, inFeatures, outFeatures) => ({
    rows,
    inFeatures,
    outFeatures,
    rank: adapter?.rank ?? 0,
    graph: adapter?.graph ?? 'separate',
    isTrained: base === null,
  });
  if ('gate' in half) {
    const { intermediate } = shape;
    const { gate, up, down } = half;
    return [
      layer(gate, hidden, intermediate),
      layer(up, hidden, intermediate),
      layer(down, intermediate, hidden),
    ];
  }
  const [width, keyWidth] = [shape.heads * shape.headDim, shape.kvHeads * shape.headDim];
  const { q, k, v, o } = half;
  return [
    layer(q, hidden, width),
    layer(k, hidden, keyWidth),
    layer(v, hidden, keyWidth),
    layer(o, width, hidden),
  ];
}

function forwardOperations({ rows, inFeatures, outFeatures, rank, graph }) {
  const path = graph === 'separate' ? rank * (inFeatures + outFeatures) : 0;
  return 2 * rows * (inFeatures * outFeatures + path);
}

function backwardOperations({ rows, inFeatures, outFeatures, rank, graph, isTrained }) {
  const weights = inFeatures * outFeatures;
  if (isTrained) return 4 * rows * weights;
  if (graph === 'weightGradient') return 4 * (rows + rank) * weights;
  return 2 * rows * weights + 4 * rows * rank * (inFeatures + outFeatures);
}

/** A forward call without y recomputes a state and does not count. */
const half =
  (isBackward, ofLayer, ofAttention) =>
  ({ half, y }) => {
    if (!isBackward && y === null) return 0;
    return layersOf(half)
      .map(ofLayer)
      .reduce((sum, value) => sum + value, ofAttention(half));
  };

/** Two products of half a square forward, four backward. */
const attention =
  (count) =>
  ({ shape: { batch, time, heads, headDim } }) =>
    count * batch * time * time * heads * headDim;

/**
 * Floating point operations of one call of a native function, from its arguments by their names in nativeAddon.ts. As in docs/relora.md,
 * recomputation does not count. Functions that are not listed have no products.
 */
const operations = {
  matmul: ({ shape: { batch, m, n, k } }) => 2 * batch * m * n * k,
  linearForward: ({ x, y, rows, layer }) => base(x, y, rows) + 2 * rankOf(layer) * (x.length + y.length),
  linearBackward: ({ dx, dy, rows, layer }) =>
    base(dx, dy, rows) + 4 * rankOf(layer) * (dx.length + dy.length),
  headCrossEntropy: ({ shape: { rows, hidden, vocabulary }, dx, dhead }) =>
    2 * rows * hidden * vocabulary * (1 + (dx === null ? 0 : 1) + (dhead === null ? 0 : 1)),
  attentionForward: ({ shape: { batch, time, heads, headDim } }) => 2 * batch * time * time * heads * headDim,
  attentionBackward: ({ shape: { batch, time, heads, headDim } }) =>
    4 * batch * time * time * heads * headDim,
  mlpHalfForward: half(false, forwardOperations, () => 0),
  mlpHalfBackward: half(true, backwardOperations, () => 0),
  attentionHalfForward: half(false, forwardOperations, attention(2)),
  attentionHalfBackward: half(true, backwardOperations, attention(4)),
  packMerged: ({ w, rank }) => 2 * rank * w.length,
};

function rankOf({ adapter }) {
  return adapter?.rank ?? 0;
}

/** 2 rows in out, of arrays [rows, in] and [rows, out]. */
function base(x, y, rows) {
  return (2 * x.length * y.length) / rows;
}

export function isProduct(kernel) {
  return kernel in operations;
}

/** Returns the costs of calls: operations, 0 if there is no product, and bytes. */
export function kernelCosts(addon) {
  const names = argumentNames();
  return (kernel, values) => {
    const named = Object.fromEntries((names[kernel] ?? []).map((name, index) => [name, values[index]]));
    return { operations: operations[kernel]?.(named) ?? 0, bytes: bytesOf(addon, named) };
  };
}

/** Each array argument once, and the single packing of the base that is read: the minimum memory traffic. */
function bytesOf(addon, named) {
  let bytes = 0;
  const add = (value, name) => {
    if (ArrayBuffer.isView(value)) bytes += value.byteLength;
    else if (name === 'base') bytes += value === null ? 0 : addon.packedBaseBytes(value) / 2;
    else if (typeof value === 'object' && value !== null)
      for (const [field, inner] of Object.entries(value)) add(inner, field);
  };
  add(named, '');
  return bytes;
}

/** Read from the declarations, so that they stay correct if arguments are added or removed. */
function argumentNames() {
  const path = new URL('../../engine/dist/device/cpu/nativeAddon.d.ts', import.meta.url);
  const source = ts.createSourceFile('nativeAddon.d.ts', readFileSync(path, 'utf8'), ts.ScriptTarget.Latest);
  const surface = source.statements.find(
    (statement) => ts.isInterfaceDeclaration(statement) && statement.name.text === 'NativeAddon',
  );
  const methods = surface.members.filter(ts.isMethodSignature);
  return Object.fromEntries(
    methods.map(({ name, parameters }) => [name.text, parameters.map((parameter) => parameter.name.text)]),
  );
}
