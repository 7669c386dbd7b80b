import { readFileSync } from 'node:fs';
import ts from 'typescript';

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
    return { operations: operations[kernel]?.(named) ?? 0, bytes: bytesOf(addon, named) };
  };
}

/** Every array that was handed over once, and the one packing of the base that is read: the least that must move. */
function bytesOf(addon, named) {
  let bytes = 0;
  for (const value of Object.values(named)) if (ArrayBuffer.isView(value)) bytes += value.byteLength;
  return named.base === undefined ? bytes : bytes + addon.packedBaseBytes(named.base) / 2;
}

/** Read from the declarations, so that an argument more or fewer does not shift what is counted. */
function argumentNames() {
  const path = new URL('../../engine/dist/backend/nativeAddon.d.ts', import.meta.url);
  const source = ts.createSourceFile('nativeAddon.d.ts', readFileSync(path, 'utf8'), ts.ScriptTarget.Latest);
  const surface = source.statements.find(
    (statement) => ts.isInterfaceDeclaration(statement) && statement.name.text === 'NativeAddon',
  );
  const methods = surface.members.filter(ts.isMethodSignature);
  return Object.fromEntries(
    methods.map(({ name, parameters }) => [name.text, parameters.map((parameter) => parameter.name.text)]),
  );
}
