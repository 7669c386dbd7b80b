import { readFileSync } from 'node:fs';
import ts from 'typescript';

/** Where the layers of a fused half begin among its arguments after the state, and how many there are. */
const halves = { mlp: { first: 5, count: 3 }, attention: { first: 12, count: 4 } };
const layerLength = 7;
const gradientLength = 3;

/** [rows, in, out, rank, graph, is trained] of each layer of a half, read from what a call was given. */
function layersOf({ first, count }, rest, isBackward) {
  const length = layerLength + (isBackward ? gradientLength : 0);
  const [, , rows, hidden] = rest;
  return Array.from({ length: count }, (_, index) => {
    const layer = rest.slice(first + index * length, first + (index + 1) * length).slice(-layerLength);
    const [base, , , , , rank, graph] = layer;
    // The first layers read the hidden state, the last one gives it.
    const isLast = index === count - 1;
    const inner = innerWidth(rest, count, index);
    const [inFeatures, outFeatures] = isLast ? [inner, hidden] : [hidden, inner];
    return { rows, inFeatures, outFeatures, rank, graph, isTrained: base === null };
  });
}

/** Width of a layer on the side that is not the hidden state. */
function innerWidth(rest, count, index) {
  if (count === halves.mlp.count) return rest[4];
  const [heads, kvHeads, headDim] = rest.slice(8, 11);
  return (index === 1 || index === 2 ? kvHeads : heads) * headDim;
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

/** A forward call without y makes again what was not kept: it does not count. */
const half =
  (shape, isBackward, ofLayer, ofAttention) =>
  ({ y, rest }) => {
    if (!isBackward && y === null) return 0;
    const layers = layersOf(shape, rest, isBackward).map(ofLayer);
    return layers.reduce((sum, value) => sum + value, ofAttention(rest));
  };

/** Two products of half a square forward, four backward. */
const attention = (count) => (rest) => {
  const [batch, time, heads, , headDim] = rest.slice(6, 11);
  return count * batch * time * time * heads * headDim;
};

/**
 * Floating point operations of one call of a native function, from its arguments by the names that nativeAddon.ts gives
 * them. They are those of docs/relora.md: what is computed again does not count. What is not here is not a product.
 */
const operations = {
  matmul: ({ batch, m, n, k }) => 2 * batch * m * n * k,
  loraLinearForward: ({ x, y, rows, rank }) => base(x, y, rows) + 2 * rank * (x.length + y.length),
  loraLinearBackward: ({ x, dy, rows, rank }) => base(x, dy, rows) + 4 * rank * (x.length + dy.length),
  headCrossEntropy: ({ rows, dim, vocabulary, dx, dhead }) =>
    2 * rows * dim * vocabulary * (1 + (dx === null ? 0 : 1) + (dhead === null ? 0 : 1)),
  attentionForward: ({ batch, time, heads, headDim }) => 2 * batch * time * time * heads * headDim,
  attentionBackward: ({ batch, time, heads, headDim }) => 4 * batch * time * time * heads * headDim,
  mlpHalfForward: half(halves.mlp, false, forwardOperations, () => 0),
  mlpHalfBackward: half(halves.mlp, true, backwardOperations, () => 0),
  attentionHalfForward: half(halves.attention, false, forwardOperations, attention(2)),
  attentionHalfBackward: half(halves.attention, true, backwardOperations, attention(4)),
  packMerged: ({ w, rank }) => 2 * rank * w.length,
};

/** 2 rows in out, of arrays [rows, in] and [rows, out]. */
function base(x, y, rows) {
  return (2 * x.length * y.length) / rows;
}

export function isProduct(kernel) {
  return kernel in operations;
}

/** Gives what calls cost: operations, 0 for what is not a product, and bytes. */
export function kernelCosts(addon) {
  const names = argumentNames();
  return (kernel, values) => {
    const named = Object.fromEntries((names[kernel] ?? []).map((name, index) => [name, values[index]]));
    // What comes by a rest parameter has one name for all.
    if ('rest' in named) named.rest = values.slice(names[kernel].length - 1);
    return { operations: operations[kernel]?.(named) ?? 0, bytes: bytesOf(addon, named) };
  };
}

/** Every array that was handed over once, and the one packing of the base that is read: the least that must move. */
function bytesOf(addon, named) {
  let bytes = 0;
  for (const value of Object.values(named).flat()) if (ArrayBuffer.isView(value)) bytes += value.byteLength;
  for (const base of [named.base, ...(named.rest ?? []).filter(isBase)])
    if (base !== undefined) bytes += addon.packedBaseBytes(base) / 2;
  return bytes;
}

/** Handles are the only plain objects among the arguments of a half. */
function isBase(value) {
  return typeof value === 'object' && value !== null && !ArrayBuffer.isView(value);
}

/** Read from the declarations, so that an argument more or fewer does not shift what is counted. */
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
