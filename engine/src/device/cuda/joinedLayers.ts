import type { Layer, LayerGradients } from '../device.js';
import { isOfE4m3, JoinedWeights } from './joinedWeights.js';
import type { LinearPass } from './linear.js';
import { newMatrix, tight, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import type { ProductPart } from './productCalls.js';
import { Scope } from './scope.js';

/**
 * Layers that read one input, as one product: their weights stand beside each other, in bfloat16. Trained weights are rounded by their
 * own update; frozen ones get W' = W + s A B in memory of the pass just before they are used, so that W and W' are never both
 * held for more than a layer. x A is made in the backward pass, by one product for all: it costs what more columns of
 * the forward product would, and nothing is kept.
 */
export class JoinedLayers extends JoinedWeights {
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

function areTogether(calls: MatrixCalls, into: readonly LayerGradients[], of: 'weight' | 'a' | 'b'): boolean {
  return calls.memory.areTogether(into.flatMap((gradients) => gradients[of] ?? []));
}
