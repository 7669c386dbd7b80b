import type * as api from '../device.js';
import type { BlasProducts } from './blasProducts.js';
import { CardMemory } from './cardMemory.js';
import { Scope } from './scope.js';
import type { Card } from './cudaAddon.js';
import type { Kernels } from './kernels.js';
import { newMatrix, tight, typeOf, type Arithmetic } from './matrix.js';
import { MatrixCalls } from './matrixCalls.js';
import { newCardBase, packInto, type CardBase } from './packedBase.js';

/** Frozen weights of a card: packed for products, merged into, and parked on the host in between. */
export class CardBases extends CardMemory implements api.FrozenBaseCalls {
  protected readonly calls: MatrixCalls;
  protected readonly arithmetic: Arithmetic;

  constructor(
    readonly description: api.DeviceDescription,
    card: Card,
    kernels: Kernels,
    blas: BlasProducts | null,
    isApart: boolean,
  ) {
    super(card, isApart);
    this.calls = new MatrixCalls(this, kernels, blas);
    this.arithmetic = description.precision;
  }

  packBase(weight: api.DeviceBuffer, inFeatures: number, outFeatures: number): api.FrozenBase {
    checkWeight(weight, inFeatures, outFeatures);
    const isE4m3 = this.description.basePrecision === 'fp8';
    return newCardBase(inFeatures, outFeatures, isE4m3, typeOf(this.arithmetic));
  }

  repackBase(base: api.FrozenBase, weight: api.DeviceBuffer): void {
    const own = base as CardBase;
    const { inFeatures, outFeatures, matrix } = own;
    checkWeight(weight, inFeatures, outFeatures);
    this.changed();
    own.version++;
    if (matrix === null) return; // it will be packed on first use
    if (typeOf(this.arithmetic) !== 'float')
      return packInto(this.calls, matrix, { weight, inFeatures, outFeatures, name: 'repackBase: weight' });
    // Products read the weight itself until an adapter is merged into it.
    own.release();
    own.matrix = null;
  }

  /** In bfloat16 every pass computes W + s A B by itself. */
  packMerged(base: api.FrozenBase, weight: api.DeviceBuffer, adapter: api.LayerAdapter): void {
    const { inFeatures, outFeatures } = base;
    const { rank, scale } = adapter;
    if (typeof scale !== 'number') throw new TypeError('packMerged: expected a constant scale');
    if ((base as CardBase).isE4m3) throw new TypeError('packMerged: a base in e4m3 takes no adapter');
    if (typeOf(this.arithmetic) !== 'float') return;
    const temporary = new Scope(this);
    const matrixOf = (buffer: api.DeviceBuffer, rows: number, columns: number, field: string) =>
      tight(this.stagedFloats(buffer, rows * columns, `packMerged: ${field}`, temporary), rows, columns);
    if ((base as CardBase).matrix === null) {
      const scope = new Scope(this);
      const matrix = newMatrix(scope, inFeatures, outFeatures, 'float');
      Object.assign(base, { matrix, release: () => scope.end() });
    }
    this.calls.product(
      (base as CardBase).matrix!,
      matrixOf(adapter.a, inFeatures, rank, 'a'),
      matrixOf(adapter.b, rank, outFeatures, 'b'),
      { scale, addend: matrixOf(weight, inFeatures, outFeatures, 'weight') },
    );
    temporary.end();
  }

  releaseBase(base: api.FrozenBase): void {
    this.changed();
    (base as CardBase).release();
    (base as CardBase).matrix = null;
  }

  get packMergedReadsWeight(): boolean {
    return typeOf(this.arithmetic) === 'float';
  }

  /** In float32 weights are not parked, since products read them at every step. */
  override park(weight: api.DeviceBuffer): void {
    if (typeOf(this.arithmetic) !== 'float') super.park(weight);
  }

  async mergeAdapter(
    into: api.DeviceBuffer | null,
    weight: api.DeviceBuffer,
    { a, b, rank, scale }: api.LayerAdapter,
    { inFeatures, outFeatures }: { readonly inFeatures: number; readonly outFeatures: number },
  ): Promise<{ finite: boolean; deltaNorm: number }> {
    const length = inFeatures * outFeatures;
    const factor =
      typeof scale === 'number' ? scale : Math.tanh(((await this.download(scale)) as Float32Array)[0]!);
    const grid = [Math.ceil(outFeatures / 64), Math.ceil(inFeatures / 64)] as const;
    const blocks = grid[0] * grid[1];
    const scope = new Scope(this);
    const found = scope.take(12 * blocks);
    const parameters = {
      w: this.stagedFloats(weight, length, 'mergeAdapter: weight', scope),
      a: this.floats(a, inFeatures * rank, 'mergeAdapter: a'),
      b: this.floats(b, rank * outFeatures, 'mergeAdapter: b'),
      ...{
        squares: found,
        infinite: found + 8 * blocks,
        in: inFeatures,
        rank,
        out: outFeatures,
        scale: factor,
      },
    };
    const merge = (merged: number) =>
      this.calls.launch({
        ...{ file: 'product_float', kernel: 'merge_adapter', grid },
        parameters: { ...parameters, merged },
      });
    // A dry run first: if the result is not finite, the weight must stay unchanged.
    merge(0);
    const bytes = new Uint8Array(12 * blocks);
    await this.card.downloadLater(bytes, found);
    const squares = new Float64Array(bytes.buffer, 0, blocks).reduce((sum, part) => sum + part, 0);
    const finite =
      Number.isFinite(squares) && new Int32Array(bytes.buffer, 8 * blocks).every((count) => count === 0);
    if (into !== null && finite) {
      const to = into === weight ? parameters.w : this.floats(into, length, 'mergeAdapter: into');
      merge(to);
      this.keepStaged(into, to);
    }
    scope.end();
    return { finite, deltaNorm: Math.sqrt(squares) };
  }
}

function checkWeight({ length }: api.DeviceBuffer, inFeatures: number, outFeatures: number): void {
  if (length !== inFeatures * outFeatures)
    throw new RangeError(`packBase: weight: expected ${inFeatures * outFeatures} elements, got ${length}`);
}
