import { afterEach, describe, expect, it } from 'vitest';
import { BlasProducts } from '../../engine/dist/device/cuda/blasProducts.js';
import { CardMemory } from '../../engine/dist/device/cuda/cardMemory.js';
import { Scope } from '../../engine/dist/device/cuda/scope.js';
import { columnsOf, newMatrix, rowsOf, type Matrix } from '../../engine/dist/device/cuda/matrix.js';
import { MatrixCalls } from '../../engine/dist/device/cuda/matrixCalls.js';
import {
  epsilon,
  excess,
  matrix,
  multiply,
  roundToBfloat16,
  seededArray,
  transposed,
} from '../engine/nativeReference.js';
import { openModelCard, type ModelCard } from './modelCard.js';
import { modelPath } from './modelPaths.js';

let open: ModelCard | null = null;
afterEach(() => open?.close());

/** Products by the model's cuBLASLt or, if `hasBlas` is false, by our own kernels. */
function bench(hasBlas: boolean) {
  const card = (open = openModelCard());
  card.model.takeFaults();
  card.addon.openBlas(modelPath);
  const memory = new CardMemory(card, true);
  const calls = new MatrixCalls(memory, card.kernels, hasBlas ? new BlasProducts(card, 130_000) : null);
  const scope = new Scope(memory);
  const put = (to: Matrix, values: Float32Array) => {
    for (let row = 0; row < to.rows; row++) {
      const own = values.subarray(row * to.columns, (row + 1) * to.columns);
      const words = Uint16Array.from(new Uint32Array(roundToBfloat16(own).buffer), (word) => word >>> 16);
      const { address } = rowsOf(to, row, 1);
      if (own.length > 0) card.upload(address, to.type === 'float' ? own.slice() : words);
    }
  };
  const get = (from: Matrix): Float32Array => {
    const floats = calls.as('float', from, scope);
    const found = new Float32Array(from.rows * from.columns);
    for (let row = 0; row < from.rows; row++) {
      const own = new Float32Array(from.columns);
      card.download(own, rowsOf(floats, row, 1).address);
      found.set(own, row * from.columns);
    }
    return found;
  };
  const make = (rows: number, columns: number, type: Matrix['type'], values?: Float32Array): Matrix => {
    const made = newMatrix(scope, rows, columns, type);
    if (values !== undefined) put(made, values);
    return made;
  };
  return { card, calls, scope, put, get, make };
}

const sides = [
  { name: 'cuBLASLt', hasBlas: true },
  { name: 'kernels of our own', hasBlas: false },
];
const ways = [
  { transposeA: false, transposeB: false },
  { transposeA: false, transposeB: true },
  { transposeA: true, transposeB: false },
];

describe.each(sides)('products by $name', ({ hasBlas }) => {
  it.each(ways)('agree with float64, $transposeA $transposeB', ({ transposeA, transposeB }) => {
    const [m, n, k] = [37, 29, 45];
    const { card, calls, get, make } = bench(hasBlas);
    const [a, b] = [1, 2].map((seed) => roundToBfloat16(seededArray((seed === 1 ? m : n) * k, seed)));
    const addend = seededArray(m * n, 3);
    const left = transposeA ? make(k, m, 'bf16', a!) : make(m, k, 'bf16', a!);
    const right = transposeB ? make(n, k, 'bf16', b!) : make(k, n, 'bf16', b!);
    const added = make(m, n, 'float', addend);
    const floats = make(m, n, 'float');
    calls.product(floats, left, right, { transposeA, transposeB, scale: 0.75, addend: added });
    const rounded = make(m, n, 'bf16');
    calls.product(rounded, left, right, { transposeA, transposeB });
    const sum = make(m, n, 'float', addend);
    calls.product(sum, left, right, { transposeA, transposeB, adds: true });

    const one = transposeA ? transposed(matrix(a!, k, m)) : matrix(a!, m, k);
    const other = transposeB ? transposed(matrix(b!, n, k)) : matrix(b!, k, n);
    const { value, magnitude } = multiply(one, other);
    const within = (at: number) => k * epsilon * (magnitude[at]! + Math.abs(addend[at]!));
    expect(
      excess(
        get(floats),
        value.map((v, i) => 0.75 * v + addend[i]!),
        within,
      ),
    ).toBeLessThanOrEqual(0);
    expect(
      excess(
        get(sum),
        value.map((v, i) => v + addend[i]!),
        within,
      ),
    ).toBeLessThanOrEqual(0);
    const inHalf = (at: number) => 2 ** -8 * Math.abs(value[at]!) + within(at);
    expect(excess(get(rounded), value, inHalf)).toBeLessThanOrEqual(0);
    expect(card.model.takeFaults()).toEqual([]);
    expect(card.kernels.counts.get('cublaslt') ?? 0).toBe(hasBlas ? 3 : 0);
  });

  it('of several matrices beside each other are those of each, bit for bit', () => {
    const [m, n, k, count] = [19, 16, 24, 3];
    const { card, calls, get, make } = bench(hasBlas);
    const all = make(m, count * k, 'bf16', seededArray(m * count * k, 4));
    const weights = make(k, count * n, 'bf16', seededArray(k * count * n, 5));
    const parts = (to: Matrix) =>
      Array.from({ length: count }, (_, i) => ({
        to: columnsOf(to, i * n, n),
        a: columnsOf(all, i * k, k),
        b: columnsOf(weights, i * n, n),
      }));
    const [together, apart] = [make(m, count * n, 'bf16'), make(m, count * n, 'bf16')];
    calls.products(parts(together));
    for (const { to, a, b } of parts(apart)) calls.product(to, a, b);
    expect(get(together)).toEqual(get(apart));
    expect(card.kernels.counts.get('cublaslt') ?? 0).toBe(hasBlas ? 1 + count : 0);
    expect(card.model.takeFaults()).toEqual([]);
  });

  it('over a long sum that fills few tiles are made in parts, with the same bits again', () => {
    const [m, n, k] = [8, 16, 4096];
    const { calls, get, make } = bench(hasBlas);
    const [a, b] = [roundToBfloat16(seededArray(m * k, 6)), roundToBfloat16(seededArray(k * n, 7))];
    const [left, right] = [make(m, k, 'bf16', a), make(k, n, 'bf16', b)];
    const [once, again] = [make(m, n, 'float'), make(m, n, 'float')];
    calls.product(once, left, right);
    calls.product(again, left, right);
    expect(get(again)).toEqual(get(once));
    const { value, magnitude } = multiply(matrix(a, m, k), matrix(b, k, n));
    expect(excess(get(once), value, (at) => k * epsilon * magnitude[at]!)).toBeLessThanOrEqual(0);
  });
});

describe('products by cuBLASLt', () => {
  it('are planned once for each shape, with an algorithm that is kept', () => {
    const { card, make } = bench(true);
    const blas = new BlasProducts(card, 130_000);
    const [a, b, to] = [make(8, 16, 'bf16'), make(16, 24, 'bf16'), make(8, 24, 'float')];
    const product = {
      ...{ to, a, b, addend: null, transposeA: false, transposeB: false, scale: 1, scales: null },
      batch: { count: 1, to: 0, a: 0, b: 0, addend: 0 },
    };
    for (let i = 0; i < 3; i++) expect(blas.run(product)).toBe(true);
    expect(blas.algorithms.size).toBe(1);
    expect([...blas.algorithms.values()][0]).toMatch(/^[0-9a-f]{128}$/);
  });

  it('that write outside of their memory are refused', () => {
    const { card, calls, make } = bench(true);
    const [a, b, to] = [make(64, 16, 'bf16'), make(16, 24, 'bf16'), make(8, 24, 'float')];
    expect(() => calls.product({ ...to, rows: 64 }, a, b)).toThrow(/multiplying/);
    expect(card.model.takeFaults()).toEqual(['a product reads or writes its result out of bounds']);
  });
});

describe('what is captured', () => {
  it('is not run until it is asked for, and then gives the bits of what is run at once', () => {
    const { card, calls, get, make } = bench(true);
    const [a, b] = [make(8, 16, 'bf16', seededArray(128, 8)), make(16, 24, 'bf16', seededArray(384, 9))];
    const [live, replayed] = [make(8, 24, 'float'), make(8, 24, 'float', new Float32Array(192))];
    calls.product(live, a, b);
    card.beginCapture();
    calls.product(replayed, a, b);
    calls.copy(replayed, replayed);
    const graph = card.endCapture();
    expect(get(replayed)).toEqual(new Float32Array(192));
    card.runGraph(graph);
    expect(get(replayed)).toEqual(get(live));
    card.releaseGraph(graph);
    expect(() => card.runGraph(graph)).toThrow(/no such graph/);
  });

  it('may hold nothing that waits', () => {
    const { card } = bench(true);
    card.beginCapture();
    expect(() => card.synchronize()).toThrow(/waiting/);
    card.releaseGraph(card.endCapture());
  });
});

describe('small uploads', () => {
  it('pass through pinned memory that is used again, and arrive in their order', () => {
    const { card } = bench(false);
    const count = 40;
    const values = Array.from({ length: count }, (_, i) => new Uint8Array(2 ** 19).fill(i + 1));
    const at = values.map((each) => card.allocate(each.length));
    values.forEach((each, i) => {
      card.upload(at[i]!, each);
      each.fill(0); // arguments may be changed right after the call
    });
    at.forEach((address, i) => {
      const found = new Uint8Array(2 ** 19);
      card.download(found, address);
      expect(found.every((byte) => byte === i + 1)).toBe(true);
    });
  });
});
