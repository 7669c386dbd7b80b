import type { DeviceBuffer, Layer } from '../device.js';
import type { CardMemory } from './cardMemory.js';
import { E4m3Weights } from './e4m3Weights.js';
import { columnsOf, newMatrix, padded, widthOf, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import { packInto, type CardBase } from './packedBase.js';
import { Scope } from './scope.js';

/** Weights and adapters of layers with the same input, as adjacent columns. */
export class JoinedWeights {
  protected readonly offsets: readonly number[];
  /** W, or the rounded copy of trained weights: [columns of the input, columns of all layers], zeros in the padding. */
  protected readonly weights: Matrix;
  /**
   * Used instead of W for an e4m3 base: adapters then have a separate path, since e4m3 would round away the small changes of a young
   * adapter.
   */
  protected readonly e4m3: E4m3Weights | null = null;
  /** A of the adapted layers, as adjacent columns; null without adapters. */
  protected readonly a: Matrix | null;
  /** First column of each layer's A. */
  protected readonly rankOffsets: readonly number[];

  /** `inputWidth`: columns of the input, including zero padding. */
  protected constructor(
    protected readonly calls: MatrixCalls,
    protected readonly layers: readonly Layer[],
    protected readonly inputWidth: number,
  ) {
    const { memory } = calls;
    // A single layer needs no padding.
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
      if (base.matrix === null) packInto(calls, own, layer);
      else calls.copy(own, base.matrix);
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

  /** Indices of the adapted layers by scale: layers of the same scale can share a product. */
  protected byScale(): Map<number, number[]> {
    const groups = new Map<number, number[]>();
    this.layers.forEach(({ adapter }, i) => {
      if (adapter === null) return;
      const scale = adapter.scale as number;
      groups.set(scale, [...(groups.get(scale) ?? []), i]);
    });
    return groups;
  }

  /** All of A; parts that were written by anything but an update are rounded now. */
  protected roundedA(): Matrix {
    for (const { adapter, inFeatures, name } of this.layers)
      if (adapter !== null) this.calls.half(adapter.a, inFeatures, adapter.rank, `${name}.a`);
    return this.a!;
  }

  /** The weights with their adapters merged in. */
  protected merged(temporary: Scope): Matrix {
    const { calls, layers, weights } = this;
    // Weights that were written by anything but an update are rounded now.
    for (const { base, weight, inFeatures, outFeatures, name } of layers)
      if (base === null) calls.half(weight, inFeatures, outFeatures, name);
    if (this.a === null) return weights;
    this.roundedA();
    const merged = newMatrix(temporary, weights.rows, weights.columns, 'bf16');
    // The padding is zero here too, and a layer without an adapter keeps its weights.
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

  /** A layer's part of the weights, or of a matrix of the same width. */
  protected partOf(all: Matrix, i: number): Matrix {
    return { ...this.columnsOfLayer(all, i), rows: this.layers[i]!.inFeatures };
  }

  protected columnsOfLayer(all: Matrix, i: number): Matrix {
    return columnsOf(all, this.offsets[i]!, this.layers[i]!.outFeatures);
  }

  protected ranksOfLayer(all: Matrix, i: number): Matrix {
    return columnsOf(all, this.rankOffsets[i]!, this.layers[i]!.adapter!.rank);
  }

  /** Whether it was made from these layers and still shares its memory with them. */
  protected isOf(layers: readonly Layer[]): boolean {
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

export const isOfE4m3 = ({ base }: Layer) => base !== null && (base as CardBase).isE4m3;

/** A zeroed matrix with several holders: freed when the last one releases it. */
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

/** Start offsets of consecutive widths, followed by the total. */
function offsetsOf(widths: readonly number[]): number[] {
  const offsets = [0];
  for (const width of widths) offsets.push(offsets.at(-1)! + width);
  return offsets;
}
