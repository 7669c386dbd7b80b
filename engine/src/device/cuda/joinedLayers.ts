import type { Layer, LayerGradients } from '../device.js';
import { isOfE4m3, JoinedWeights } from './joinedWeights.js';
import type { LinearPass } from './linear.js';
import { newMatrix, tight, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import type { ProductPart } from './productCalls.js';
import { Scope } from './scope.js';

/**
 * Layers with the same input, as one product: their weights are adjacent columns in bfloat16. Trained weights are rounded by their own
 * update; for frozen ones W' = W + s A B is computed in memory of the pass just before use, so that both W and W' exist only for one layer
 * at a time. x A is recomputed in the backward pass, by one product for all layers: that costs as much as additional columns in the forward
 * product, and nothing has to be kept.
 */
export class JoinedLayers extends JoinedWeights {
  /** Whether these layers can be one product. */
  static canBe(layers: readonly Layer[], pass: LinearPass): boolean {
    const isAlike = layers.every(({ base }) => (base === null) === (layers[0]!.base === null));
    return pass.arithmetic === 'bfloat16' && !pass.isProbe && layers.every(isPlain) && isAlike;
  }

  /** The joined layers: created on first use, then looked up. */
  static of(calls: MatrixCalls, layers: readonly Layer[], inputWidth: number): JoinedLayers {
    const key: object = layers[0]!.base ?? layers[0]!.weight;
    const found = known.get(key);
    if (found?.calls === calls && found.inputWidth === inputWidth && found.isOf(layers)) return found;
    const made = new JoinedLayers(calls, layers, inputWidth);
    known.set(key, made);
    return made;
  }

  /** Whether inputs, and gradients of outputs, are read in e4m3. */
  get readsCodes(): boolean {
    return this.e4m3 !== null;
  }

  /** to[rows, width] = x times the weights of all layers + addend. */
  forward(to: Matrix, x: Matrix, addend: Matrix | null): void {
    const temporary = new Scope(this.calls.memory);
    if (this.e4m3 === null) this.calls.product(to, x, this.merged(temporary), { addend });
    else {
      this.e4m3.forward(to, x, addend, temporary);
      if (this.a !== null) this.addAdapters(to, x, temporary);
    }
    temporary.end();
  }

  /** dx, in float32 or bfloat16, from the gradients dy[rows, width] of all layers. */
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

  /** Writes the requested gradients, in the order of the layers. */
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
      // A product writes rows that are not aligned slowly: such gradients are computed elsewhere and copied.
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
}

/** Keyed by the first of the layers. */
const known = new WeakMap<object, JoinedLayers>();

/** Without biases, and without separate adapter paths unless the base is in e4m3. */
function isPlain(layer: Layer): boolean {
  const { bias, adapter } = layer;
  if (bias !== null) return false;
  if (adapter === null) return true;
  if (typeof adapter.scale !== 'number' || adapter.dropout !== null) return false;
  return isOfE4m3(layer) || adapter.graph !== 'separate';
}

function areTogether(calls: MatrixCalls, into: readonly LayerGradients[], of: 'weight' | 'a' | 'b'): boolean {
  return calls.memory.areTogether(into.flatMap((gradients) => gradients[of] ?? []));
}
