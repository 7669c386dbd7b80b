import type { DeviceBuffer, Layer, LayerGradients } from '../device.js';
import { Scope, type CardMemory } from './cardMemory.js';
import { E4m3Weights } from './e4m3Weights.js';
import type { CardBase, LinearPass } from './linear.js';
import { columnsOf, newMatrix, padded, tight, widthOf, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import type { ProductPart } from './productCalls.js';

/**
 * Layers that read one input, as one product: their weights stand beside each other, in bfloat16. Trained weights are rounded by their
 * own update; frozen ones get W' = W + s A B in memory of the pass just before they are used, so that W and W' are never both
 * held for more than a layer. x A is made in the backward pass, by one product for all: it costs what more columns of
 * the forward product would, and nothing is kept.
 */
export class JoinedLayers {
  private readonly offsets: readonly number[];
  /** W, or the rounded weights that are trained: [columns of the input, of all layers], zeros where no layer has a weight. */
  private readonly weights: Matrix;
  /** Of a base in e4m3, in place of W: adapters have a path of their own beside it then, which e4m3 would swallow while they are young. */
  private readonly e4m3: E4m3Weights | null = null;
  /** A of the adapted layers beside each other; null without adapters. */
  private readonly a: Matrix | null;
  /** Where the columns of each layer's A begin. */
  private readonly rankOffsets: readonly number[];

  /** `inputWidth`: columns of what goes in, zeros among them. */
  private constructor(
    private readonly calls: MatrixCalls,
    private readonly layers: readonly Layer[],
    private readonly inputWidth: number,
  ) {
    const { memory } = calls;
    // One alone makes what it makes.
    const widths = layers.map(({ outFeatures }) =>
      layers.length === 1 ? outFeatures : widthOf(outFeatures),
    );
    this.offsets = offsetsOf(widths);
    const isE4m3 = isOfE4m3(layers[0]!);
    if (isE4m3) this.e4m3 = new E4m3Weights(calls, layers, inputWidth, this.offsets);
    const weights = zeros(memory, isE4m3 ? 0 : inputWidth, this.offsets.at(-1)!, layers.length);
    this.weights = weights.matrix;
    layers.forEach((layer, i) => {
      if (isE4m3) return weights.release();
      const own = this.partOf(this.weights, i);
      const base = layer.base as CardBase | null;
      if (base === null) {
        memory.keepHalf(layer.weight, own, weights.release);
        return;
      }
      calls.copy(own, base.matrix!);
      base.release();
      Object.assign(base, { matrix: own, release: weights.release });
    });

    const adapters = layers.map(({ adapter }) => adapter);
    const count = adapters.filter((adapter) => adapter !== null).length;
    this.rankOffsets = offsetsOf(adapters.map((adapter) => padded(adapter?.rank ?? 0)));
    this.a = null;
    if (count === 0) return;
    const a = zeros(memory, inputWidth, this.rankOffsets.at(-1)!, count);
    const sizes = layers.map(({ adapter, outFeatures }) => (adapter?.rank ?? 0) * padded(outFeatures));
    const b = zeros(memory, 1, offsetsOf(sizes).at(-1)!, count);
    this.a = a.matrix;
    layers.forEach(({ adapter, inFeatures, outFeatures }, i) => {
      if (adapter === null) return;
      const ownA = { ...columnsOf(a.matrix, this.rankOffsets[i]!, adapter.rank), rows: inFeatures };
      memory.keepHalf(adapter.a, ownA, a.release);
      const { address } = columnsOf(b.matrix, offsetsOf(sizes)[i]!, 0);
      const ownB = {
        ...b.matrix,
        address,
        rows: adapter.rank,
        columns: outFeatures,
        stride: padded(outFeatures),
      };
      memory.keepHalf(adapter.b, ownB, b.release);
    });
  }

  /** Whether they can be one product. */
  static canBe(layers: readonly Layer[], pass: LinearPass): boolean {
    const isAlike = layers.every(({ base }) => (base === null) === (layers[0]!.base === null));
    return pass.arithmetic === 'bfloat16' && !pass.isProbe && layers.every(isPlain) && isAlike;
  }

  /** The layers together: made when they are first seen, and found again. */
  static of(calls: MatrixCalls, layers: readonly Layer[], inputWidth: number): JoinedLayers {
    const key: object = layers[0]!.base ?? layers[0]!.weight;
    const found = known.get(key);
    if (found?.calls === calls && found.inputWidth === inputWidth && found.isOf(layers)) return found;
    const made = new JoinedLayers(calls, layers, inputWidth);
    known.set(key, made);
    return made;
  }

  /** Whether inputs, and gradients of what is made, are read in e4m3. */
  get readsCodes(): boolean {
    return this.e4m3 !== null;
  }

  /** to[rows, width] = x of all layers + addend. */
  forward(to: Matrix, x: Matrix, addend: Matrix | null): void {
    const temporary = new Scope(this.calls.memory);
    if (this.e4m3 === null) this.calls.product(to, x, this.merged(temporary), { addend });
    else {
      this.e4m3.forward(to, x, addend, temporary);
      if (this.a !== null) this.addAdapters(to, x, temporary);
    }
    temporary.end();
  }

  /** dx, of floats or bfloat16, of the gradients dy[rows, width] of all layers. */
  inputGradient(dx: Matrix, dy: Matrix): void {
    const temporary = new Scope(this.calls.memory);
    if (this.e4m3 === null) this.calls.product(dx, dy, this.merged(temporary), { transposeB: true });
    else {
      this.e4m3.backward(dx, dy, temporary);
      if (this.a !== null) this.addAdapterGradients(dx, dy, temporary);
    }
    temporary.end();
  }

  /** to += s (x A) B of each layer. */
  private addAdapters(to: Matrix, x: Matrix, temporary: Scope): void {
    const { calls } = this;
    const xa = newMatrix(temporary, x.rows, this.rankOffsets.at(-1)!, 'bf16');
    calls.product(xa, x, this.roundedA());
    for (const [scale, places] of this.byScale())
      calls.products(
        places.map((i) => {
          const { adapter, outFeatures, name } = this.layers[i]!;
          const own = this.columnsOfLayer(to, i);
          const b = calls.half(adapter!.b, adapter!.rank, outFeatures, `${name}.b`);
          return { to: own, a: this.ranksOfLayer(xa, i), b, addend: own };
        }),
        { scale },
      );
  }

  /** dx += s (dy Bᵀ) Aᵀ of each layer. */
  private addAdapterGradients(dx: Matrix, dy: Matrix, temporary: Scope): void {
    const { calls } = this;
    for (const [scale, places] of this.byScale())
      for (const i of places) {
        const { adapter, inFeatures, outFeatures, name } = this.layers[i]!;
        const { rank } = adapter!;
        const dp = newMatrix(temporary, dy.rows, rank, 'bf16');
        const b = calls.half(adapter!.b, rank, outFeatures, `${name}.b`);
        calls.product(dp, this.columnsOfLayer(dy, i), b, { transposeB: true });
        const own = { ...dx, columns: inFeatures };
        const a = calls.half(adapter!.a, inFeatures, rank, `${name}.a`);
        calls.product(own, dp, a, { transposeB: true, scale, addend: own });
      }
  }

  /** Places of the adapted layers by their scale: what one product may do together. */
  private byScale(): Map<number, number[]> {
    const groups = new Map<number, number[]>();
    this.layers.forEach(({ adapter }, i) => {
      if (adapter === null) return;
      const scale = adapter.scale as number;
      groups.set(scale, [...(groups.get(scale) ?? []), i]);
    });
    return groups;
  }

  /** All of A, what something else than an update has written rounded. */
  private roundedA(): Matrix {
    for (const { adapter, inFeatures, name } of this.layers)
      if (adapter !== null) this.calls.half(adapter.a, inFeatures, adapter.rank, `${name}.a`);
    return this.a!;
  }

  /** Gradients that are wanted are written, in the order of the layers. */
  gradients(into: readonly LayerGradients[], dy: Matrix, x: Matrix): void {
    const temporary = new Scope(this.calls.memory);
    this.weightGradients(into, dy, x, temporary);
    if (this.a !== null) this.adapterGradients(into, dy, x, temporary);
    temporary.end();
  }

  private weightGradients(into: readonly LayerGradients[], dy: Matrix, x: Matrix, temporary: Scope): void {
    const { calls } = this;
    const parts: ProductPart[] = [];
    const moved: { to: Matrix; from: Matrix }[] = [];
    this.layers.forEach(({ inFeatures, outFeatures, name }, i) => {
      const { weight } = into[i]!;
      if (weight === null) return;
      const address = calls.memory.floats(weight, inFeatures * outFeatures, `${name}.weight`);
      const own = tight(address, inFeatures, outFeatures);
      // Rows that begin anywhere are slow to write for a product: those are made elsewhere and copied.
      const isEven = outFeatures % 8 === 0 || outFeatures < 256;
      const to = isEven ? own : newMatrix(temporary, inFeatures, outFeatures, 'float');
      if (!isEven) moved.push({ to: own, from: to });
      parts.push({ to, a: { ...x, columns: inFeatures }, b: this.columnsOfLayer(dy, i) });
    });
    calls.products(parts, { transposeA: true }, areTogether(calls, into, 'weight') && moved.length === 0);
    for (const { to, from } of moved) calls.copy(to, from);
  }

  private adapterGradients(into: readonly LayerGradients[], dy: Matrix, x: Matrix, temporary: Scope): void {
    const { calls } = this;
    const { memory } = calls;
    const make = () => newMatrix(temporary, x.rows, this.rankOffsets.at(-1)!, 'bf16');
    const xa = into.some(({ b }) => b !== null) ? make() : null;
    const dp = into.some(({ a }) => a !== null) ? make() : null;
    if (xa !== null) calls.product(xa, x, this.roundedA());
    const places = [...this.byScale().values()].flat();
    if (dp !== null)
      calls.products(
        places
          .filter((i) => into[i]!.a !== null)
          .map((i) => {
            const { adapter, outFeatures, name } = this.layers[i]!;
            const b = calls.half(adapter!.b, adapter!.rank, outFeatures, `${name}.b`);
            return { to: this.ranksOfLayer(dp, i), a: this.columnsOfLayer(dy, i), b };
          }),
        { transposeB: true },
      );
    for (const [scale, own] of this.byScale()) {
      const [a, b]: [ProductPart[], ProductPart[]] = [[], []];
      for (const i of own) {
        const { adapter, inFeatures, outFeatures, name } = this.layers[i]!;
        const { rank } = adapter!;
        const wanted = into[i]!;
        if (wanted.a !== null) {
          const to = tight(memory.floats(wanted.a, inFeatures * rank, `${name}.a`), inFeatures, rank);
          a.push({ to, a: { ...x, columns: inFeatures }, b: this.ranksOfLayer(dp!, i) });
        }
        if (wanted.b !== null) {
          const to = tight(memory.floats(wanted.b, rank * outFeatures, `${name}.b`), rank, outFeatures);
          b.push({ to, a: this.ranksOfLayer(xa!, i), b: this.columnsOfLayer(dy, i) });
        }
      }
      calls.products(b, { transposeA: true, scale }, areTogether(calls, into, 'b'));
      calls.products(a, { transposeA: true, scale }, areTogether(calls, into, 'a'));
    }
  }

  /** The weights with their adapters in them. */
  private merged(temporary: Scope): Matrix {
    const { calls, layers, weights } = this;
    // Rounds what something else than an update has written.
    for (const { base, weight, inFeatures, outFeatures, name } of layers)
      if (base === null) calls.half(weight, inFeatures, outFeatures, name);
    if (this.a === null) return weights;
    this.roundedA();
    const merged = newMatrix(temporary, weights.rows, weights.columns, 'bf16');
    // What no layer has is zero here too, and a layer without an adapter is as it was.
    const isWhole = layers.every(
      ({ adapter, inFeatures, outFeatures }) =>
        adapter !== null && inFeatures === weights.rows && outFeatures * layers.length === weights.columns,
    );
    if (!isWhole) calls.memory.card.copy(merged.address, weights.address, 2 * weights.rows * weights.stride);
    for (const [scale, places] of this.byScale())
      calls.products(
        places.map((i) => {
          const { adapter, inFeatures, outFeatures, name } = layers[i]!;
          const a = calls.half(adapter!.a, inFeatures, adapter!.rank, `${name}.a`);
          const b = calls.half(adapter!.b, adapter!.rank, outFeatures, `${name}.b`);
          return { to: this.partOf(merged, i), a, b, addend: this.partOf(weights, i) };
        }),
        { scale },
      );
    return merged;
  }

  /** A layer's own part of the weights, or of what is made of them. */
  private partOf(all: Matrix, i: number): Matrix {
    return { ...this.columnsOfLayer(all, i), rows: this.layers[i]!.inFeatures };
  }

  private columnsOfLayer(all: Matrix, i: number): Matrix {
    return columnsOf(all, this.offsets[i]!, this.layers[i]!.outFeatures);
  }

  private ranksOfLayer(all: Matrix, i: number): Matrix {
    return columnsOf(all, this.rankOffsets[i]!, this.layers[i]!.adapter!.rank);
  }

  /** Whether it is made of these, and what it shares with them is still theirs. */
  private isOf(layers: readonly Layer[]): boolean {
    const isOwn = ({ weight, base, adapter }: Layer, i: number): boolean => {
      const own = this.layers[i]!;
      if (weight !== own.weight || base !== own.base || adapter?.a !== own.adapter?.a) return false;
      if (adapter !== null && !this.holds(this.a, adapter.a)) return false;
      if (base === null) return this.holds(this.weights, weight);
      if (this.e4m3 !== null) return (base as CardBase).holder === this.e4m3;
      return isInside(this.weights, (base as CardBase).matrix);
    };
    return layers.length === this.layers.length && layers.every(isOwn);
  }

  private holds(all: Matrix | null, buffer: DeviceBuffer): boolean {
    return isInside(all, this.calls.memory.halfOf(buffer)?.matrix ?? null);
  }
}

/** By the first of the layers. */
const known = new WeakMap<object, JoinedLayers>();

/** Neither biases nor, but beside a base in e4m3, paths of their own. */
function isPlain(layer: Layer): boolean {
  const { bias, adapter } = layer;
  if (bias !== null) return false;
  if (adapter === null) return true;
  if (typeof adapter.scale !== 'number' || adapter.dropout !== null) return false;
  return isOfE4m3(layer) || adapter.graph !== 'separate';
}

const isOfE4m3 = ({ base }: Layer) => base !== null && (base as CardBase).isE4m3;

function areTogether(calls: MatrixCalls, into: readonly LayerGradients[], of: 'weight' | 'a' | 'b'): boolean {
  return calls.memory.areTogether(into.flatMap((gradients) => gradients[of] ?? []));
}

/** A matrix of zeros that several hold: given back when the last of them has let it go. */
function zeros(memory: CardMemory, rows: number, columns: number, holders: number) {
  const scope = new Scope(memory);
  const matrix = newMatrix(scope, rows, columns, 'bf16');
  memory.card.fill(matrix.address, 0, 2 * rows * matrix.stride);
  let left = holders;
  return {
    matrix,
    release: () => {
      if (--left === 0) scope.end();
    },
  };
}

function isInside(all: Matrix | null, part: Matrix | null): boolean {
  if (all === null || part === null) return false;
  return part.address >= all.address && part.address < all.address + 2 * all.rows * all.stride;
}

/** Where each of some widths begins, and behind them where the last one ends. */
function offsetsOf(widths: readonly number[]): number[] {
  const offsets = [0];
  for (const width of widths) offsets.push(offsets.at(-1)! + width);
  return offsets;
}
