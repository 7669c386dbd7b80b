import type {
  BasePrecision,
  NativeAddon,
  NativeLayer,
  NativeLayerGradients,
  PackedBase,
  ProductPrecision,
} from '../../engine/dist/device/cpu/nativeAddon.js';
import type { Draw } from './nativeDraw.js';
import {
  attention,
  epsilon,
  halfEpsilon,
  largest,
  matrix,
  multiply,
  rmsNorm,
  transposed,
} from './nativeReference.js';

const normEpsilon = 1e-5;

const atMost = (most: number, share: number) => Math.max(1, Math.min(most, Math.floor(share)));

/** Bound of uniform numbers whose variance keeps a layer's outputs about as large as its inputs. */
const boundOf = (fanIn: number) => Math.sqrt(3 / fanIn);

/** A layer of a half, in a randomly drawn variant, and its definition in float64. */
class DrawnLayer {
  readonly base: PackedBase | null;
  readonly args: NativeLayer;
  readonly gradients: NativeLayerGradients;
  private readonly weight: Float64Array;
  /** scale A B; separate from the weight, since its input may be masked. */
  private readonly delta: Float64Array;

  constructor(
    private readonly addon: NativeAddon,
    private readonly draw: Draw,
    private readonly name: string,
    private readonly inFeatures: number,
    private readonly outFeatures: number,
    basePrecision: BasePrecision,
    bias: Float32Array | null,
    /** Of the half. */
    of: { rows: number; apart: boolean },
  ) {
    // Separate paths twice as often: only they keep state.
    const kinds = ['trained', 'frozen', 'separate', 'separate', 'merged', 'weightGradient'] as const;
    const kind = draw.say(name, draw.of(of.apart ? kinds.slice(0, 3) : kinds));
    const hasAdapter = kind !== 'trained' && kind !== 'frozen';
    const rank = hasAdapter ? draw.say('of rank', draw.of([1, 2, 3, 8, 17])) : 0;
    const scale = hasAdapter ? draw.of([0.5, 2]) : 1;
    const w = draw.floats(inFeatures * outFeatures, boundOf(inFeatures));
    const a = draw.floats(inFeatures * rank, boundOf(inFeatures));
    const b = draw.floats(rank * outFeatures, boundOf(rank));
    const delta = multiply(matrix(a, inFeatures, rank), matrix(b, rank, outFeatures)).value;
    this.weight = Float64Array.from(w);
    this.delta = delta.map((value) => scale * value);
    const isMasked = of.apart && hasAdapter && draw.of([false, true]);
    const mask = isMasked
      ? draw.floats(of.rows * inFeatures).map((value) => (value < -0.5 ? 0 : 1.25))
      : null;
    this.base = kind === 'trained' ? null : addon.packBase(w, inFeatures, outFeatures, basePrecision);
    const graph = hasAdapter ? kind : 'separate';
    if (this.base !== null && graph !== 'separate') addon.packMerged(this.base, w, a, b, scale, rank);
    this.args = {
      base: this.base,
      weight: kind === 'trained' ? w : null,
      adapter: hasAdapter ? { rank, a, b, scale, graph, mask } : null,
      bias,
    };
    const output = (gradient: string, length: number) => draw.output(`${gradient} of ${name}`, length);
    this.gradients = {
      weight: kind === 'trained' ? output('dweight', w.length) : null,
      a: hasAdapter ? output('da', a.length) : null,
      b: hasAdapter ? output('db', b.length) : null,
      scale: null,
      bias: bias && output('dbias', bias.length),
    };
  }

  forward(x: ArrayLike<number>): Float64Array {
    const through = multiply(this.rowsOf(this.seen(x), this.inFeatures), this.matrixOf(this.delta)).value;
    return multiply(this.rowsOf(x, this.inFeatures), this.matrixOf(this.weight)).value.map(
      (value, i) => value + through[i]!,
    );
  }

  /** Checks the gradients of the weights against the definition and returns that of x. */
  backward(x: ArrayLike<number>, dy: ArrayLike<number>, relative: number): Float64Array {
    const upstream = this.rowsOf(dy, this.outFeatures);
    const dense = multiply(transposed(this.rowsOf(this.seen(x), this.inFeatures)), upstream).value;
    const { adapter } = this.args;
    const agree = (
      gradient: string,
      actual: Float32Array,
      terms: ReturnType<typeof multiply>,
      factor: number,
    ) => {
      const expected = terms.value.map((value) => factor * value);
      // Rounding errors are relative to the terms, which may cancel.
      const size = Math.max(Math.sqrt(upstream.rows), factor * largest(terms.magnitude));
      this.draw.agree(`${gradient} of ${this.name}`, actual, expected, () => relative * size);
    };
    if (this.base === null) {
      agree('dweight', this.gradients.weight!, { value: dense, magnitude: dense }, 1);
    } else if (adapter !== null) {
      const { a, b, scale, rank } = adapter;
      const gradient = matrix(dense, this.inFeatures, this.outFeatures);
      agree(
        'da',
        this.gradients.a!,
        multiply(gradient, transposed(matrix(b, rank, this.outFeatures))),
        scale,
      );
      agree('db', this.gradients.b!, multiply(transposed(matrix(a, this.inFeatures, rank)), gradient), scale);
    }
    const through = this.seen(multiply(upstream, transposed(this.matrixOf(this.delta))).value);
    return multiply(upstream, transposed(this.matrixOf(this.weight))).value.map(
      (value, i) => value + through[i]!,
    );
  }

  release(): void {
    if (this.base !== null) this.addon.releaseBase(this.base);
  }

  /** The input of its adapter. */
  private seen(x: ArrayLike<number>): Float64Array {
    const mask = this.args.adapter?.mask;
    return Float64Array.from(x, (value, i) => (mask ? value * mask[i]! : value));
  }

  private matrixOf(values: Float64Array) {
    return matrix(values, this.inFeatures, this.outFeatures);
  }

  private rowsOf(values: ArrayLike<number>, width: number) {
    return matrix(values, values.length / width, width);
  }
}

/** Randomly drawn parts that both halves have. */
class DrawnHalf {
  readonly precision: ProductPrecision;
  readonly basePrecision: BasePrecision;
  readonly compact: boolean;
  readonly apart: boolean;
  readonly x: Float32Array;
  readonly gain: Float32Array;
  readonly dy: Float32Array;
  readonly normed: Float64Array;

  constructor(
    private readonly addon: NativeAddon,
    private readonly draw: Draw,
    readonly rows: number,
    private readonly hidden: number,
  ) {
    // Half of the cases with exact products, whose tolerance is small enough to show any mistake.
    const isExact = draw.of([true, false]);
    this.precision = isExact ? 'float32' : draw.precision();
    const bases = isExact ? ([this.precision] as const) : ([this.precision, 'int8'] as const);
    this.basePrecision = draw.say('base', draw.of<BasePrecision>(bases));
    this.apart = draw.say('apart', draw.of([false, false, true]));
    this.compact = draw.say('compact', !isExact && !this.apart && draw.of([false, true]));
    [this.x, this.dy] = [draw.floats(rows * hidden), draw.floats(rows * hidden)];
    this.gain = draw.floats(hidden);
    this.normed = rmsNorm(this.x, this.gain, this.dy, rows, hidden, normEpsilon).y;
  }

  layer(name: string, inFeatures: number, outFeatures: number, bias: Float32Array | null = null): DrawnLayer {
    return new DrawnLayer(
      this.addon,
      this.draw,
      name,
      inFeatures,
      outFeatures,
      this.basePrecision,
      bias,
      this,
    );
  }

  get common() {
    const { gain, precision, compact, apart } = this;
    return { gain, epsilon: normEpsilon, precision, compact, apart };
  }

  /**
   * Relative error of a value from its computation: about twenty roundings of operands and state, and sums of `reductions` terms in total.
   * 8-bit integers are up to 1 / 254 of a line's largest apart, twice as far as bfloat16 values.
   */
  relative(reductions: number): number {
    const isRounded = this.compact || this.precision === 'bfloat16' || this.basePrecision === 'int8';
    const rounding = this.basePrecision === 'int8' ? 4 * halfEpsilon : isRounded ? halfEpsilon : 0;
    return 20 * rounding + reductions * epsilon;
  }

  /** The forward pass in its three forms: those with a state must give the same state, and those with y the same y. */
  run(length: number, forward: (y: Float32Array | null, state: Float32Array | null) => void) {
    const [y, again] = [this.draw.output('y', this.x.length), this.draw.output('y again', this.x.length)];
    const [state, made] = [this.draw.output('state', length), this.draw.output('state again', length)];
    forward(y, state);
    forward(null, made);
    forward(again, null);
    this.draw.same('the state that is made again', made, state);
    this.draw.same('y without a state', again, y);
    return { y, state };
  }

  agree(y: Float32Array, ofLast: Float64Array, relative: number): void {
    const expected = ofLast.map((value, i) => value + this.x[i]!);
    this.draw.agree('y', y, expected, () => relative * Math.max(1, largest(expected)));
  }

  agreeGradients(dx: Float32Array, dgain: Float32Array, dn: Float64Array, relative: number): void {
    const { rows, hidden } = this;
    const expected = rmsNorm(this.x, this.gain, dn, rows, hidden, normEpsilon);
    // An error of dn is multiplied by rstd in dx; the component of dn along x is smaller than dn.
    const ofDx = relative * Math.max(1, largest(expected.rstd)) * Math.max(1, largest(dn));
    const through = expected.dx.map((value, i) => value + this.dy[i]!);
    this.draw.agree('dx', dx, through, () => ofDx);
    const ofGain = relative * Math.max(Math.sqrt(rows), largest(expected.dgain));
    this.draw.agree('dgain', dgain, expected.dgain, () => ofGain);
  }
}

/** By name, as in nativeProperties.test.ts. */
export function halfProperties(addon: NativeAddon): Record<string, (draw: Draw) => void> {
  const mlp = (draw: Draw) => mlpHalf(addon, draw);
  const attend = (draw: Draw) => attentionHalf(addon, draw);
  return {
    mlpHalfForward: mlp,
    mlpHalfBackward: mlp,
    attentionHalfForward: attend,
    attentionHalfBackward: attend,
  };
}

function mlpHalf(addon: NativeAddon, draw: Draw): void {
  // Enough rows for several blocks, with narrow layers then: the definition is slow.
  const rows = draw.size('rows', 300, [95, 96, 97, 191, 192, 193]);
  const hidden = draw.size('hidden');
  const inner = draw.size('intermediate', atMost(70, 5e4 / (rows * hidden)));
  const half = new DrawnHalf(addon, draw, rows, hidden);
  const gate = half.layer('gate', hidden, inner);
  const up = half.layer('up', hidden, inner);
  const down = half.layer('down', inner, hidden);
  const native = {
    shape: { rows, hidden, intermediate: inner },
    ...half.common,
    gate: gate.args,
    up: up.args,
    down: down.args,
  };
  const { y, state } = half.run(addon.mlpHalfStateLength(native), (y, state) =>
    addon.mlpHalfForward(native, half.x, y, state),
  );
  const [dx, dgain] = [draw.output('dx', half.x.length), draw.output('dgain', hidden)];
  const gradients = { dx, gain: dgain, gate: gate.gradients, up: up.gradients, down: down.gradients };
  addon.mlpHalfBackward(native, half.x, state, half.dy, gradients);

  const relative = half.relative(rows + 2 * hidden + 2 * inner + 20);
  const [g, u] = [gate.forward(half.normed), up.forward(half.normed)];
  const sigmoid = g.map((value) => 1 / (1 + Math.exp(-value)));
  const h = g.map((value, i) => value * sigmoid[i]! * u[i]!);
  half.agree(y, down.forward(h), relative);
  const dh = down.backward(h, half.dy, relative);
  const dup = dh.map((value, i) => value * g[i]! * sigmoid[i]!);
  const dgate = dh.map((value, i) => value * u[i]! * sigmoid[i]! * (1 + g[i]! * (1 - sigmoid[i]!)));
  const [throughGate, throughUp] = [gate, up].map((layer, i) =>
    layer.backward(half.normed, i === 0 ? dgate : dup, relative),
  );
  half.agreeGradients(
    dx,
    dgain,
    throughGate!.map((value, i) => value + throughUp![i]!),
    relative,
  );
  [gate, up, down].forEach((layer) => layer.release());
}

function attentionHalf(addon: NativeAddon, draw: Draw): void {
  const [kvHeads, group] = [draw.size('kvHeads', 3), draw.size('heads / kvHeads', 3)];
  const heads = kvHeads * group;
  const [batch, time] = [draw.size('batch', 3), draw.size('time', 140, [127, 128, 129])];
  const rows = batch * time;
  const hidden = draw.size('hidden', atMost(70, 2e4 / (rows * heads)));
  const headDim = 2 * draw.size('headDim / 2', atMost(20, 2e4 / (rows * heads * hidden)));
  const [width, keyWidth] = [heads * headDim, kvHeads * headDim];
  const half = new DrawnHalf(addon, draw, rows, hidden);
  const biases = [draw.floats(width, 1), draw.floats(keyWidth, 1), draw.floats(keyWidth, 1)] as const;
  const q = half.layer('q', hidden, width, biases[0]);
  const k = half.layer('k', hidden, keyWidth, biases[1]);
  const v = half.layer('v', hidden, keyWidth, biases[2]);
  const o = half.layer('o', width, hidden);
  const angles = draw.floats(time * (headDim / 2), 4);
  const [cos, sin] = [angles.map(Math.cos), angles.map(Math.sin)];
  const scale = 1 / Math.sqrt(headDim);
  const hasHeadNorms = draw.say('head norms', draw.of([true, false]));
  const isTurned = draw.say('turned', draw.of([true, true, false]));
  const documents = draw.say('documents masked', draw.of([true, false]))
    ? drawnDocuments(draw, batch, time)
    : null;
  const gains = hasHeadNorms ? { q: draw.floats(headDim), k: draw.floats(headDim) } : null;
  const native = {
    shape: { batch, time, hidden, heads, kvHeads, headDim },
    ...half.common,
    cos: isTurned ? cos : null,
    sin: isTurned ? sin : null,
    headNorms: gains,
    documents,
    q: q.args,
    k: k.args,
    v: v.args,
    o: o.args,
  };
  const { y, state } = half.run(addon.attentionHalfStateLength(native), (y, state) =>
    addon.attentionHalfForward(native, half.x, y, state),
  );
  const [dx, dgain] = [draw.output('dx', half.x.length), draw.output('dgain', hidden)];
  const dgains = gains && { q: draw.output('dgain of q', headDim), k: draw.output('dgain of k', headDim) };
  addon.attentionHalfBackward(native, half.x, state, half.dy, {
    dx,
    gain: dgain,
    headNorms: dgains,
    q: q.gradients,
    k: k.gradients,
    v: v.gradients,
    o: o.gradients,
  });
  const biasGradients = [q, k, v].map(({ gradients }) => gradients.bias!);

  /** Rotates each pair of a head by the angle of its position, or back. */
  const turn = (values: Float64Array, headCount: number, sign: 1 | -1) => {
    if (!isTurned) return values;
    return values.map((value, index) => {
      const i = index % headDim;
      const row = Math.floor(index / (headCount * headDim));
      const position = (row % time) - (documents?.[row] ?? 0);
      const angle = position * (headDim / 2) + (i % (headDim / 2));
      const isFirst = i < headDim / 2;
      const other = values[isFirst ? index + headDim / 2 : index - headDim / 2]!;
      return value * cos[angle]! + (isFirst ? -sign : sign) * other * sin[angle]!;
    });
  };
  const n = half.normed;
  const withBias = (rows: Float64Array, bias: Float32Array) =>
    rows.map((value, i) => value + bias[i % bias.length]!);
  const made = { q: withBias(q.forward(n), biases[0]), k: withBias(k.forward(n), biases[1]) };
  /** The norm of each head separately, and its gradients. */
  const headNorm = (of: 'q' | 'k', d: Float64Array) =>
    rmsNorm(made[of], gains![of], d, d.length / headDim, headDim, normEpsilon);
  const normed = (of: 'q' | 'k') => (gains === null ? made[of] : headNorm(of, made[of]).y);
  const [queries, keys] = [turn(normed('q'), heads, 1), turn(normed('k'), kvHeads, 1)];
  const values = withBias(v.forward(n), biases[2]);
  // The error of a score is a relative error of its probability; for headDim terms it grows as the root, while the scale falls.
  const score = Math.max(1, largest(queries) * largest(keys));
  // A norm amplifies the error of a short head as much as the head itself.
  const stretchOf = (of: 'q' | 'k') => Math.max(1, largest(made[of])) * largest(headNorm(of, made[of]).rstd);
  const stretch = gains === null ? 1 : Math.max(1, stretchOf('q'), stretchOf('k'));
  const relative = stretch * score * half.relative(rows + hidden + width + headDim + 20);
  const shape = { batch, time, heads, kvHeads, headDim, scale, documents };
  const { out } = attention(shape, queries, keys, values, queries);
  half.agree(y, o.forward(out), relative);
  const dout = o.backward(out, half.dy, relative);
  const { dq, dk, dv } = attention(shape, queries, keys, values, dout);
  const back = (of: 'q' | 'k', turned: Float64Array) => {
    if (gains === null) return turned;
    const { dx, dgain } = headNorm(of, turned);
    draw.agree(
      `dgain of ${of}`,
      dgains![of],
      dgain,
      () => relative * Math.max(1, largest(turned) * turned.length),
    );
    return dx;
  };
  const upstream = [back('q', turn(dq, heads, -1)), back('k', turn(dk, kvHeads, -1)), dv] as const;
  upstream.forEach((rows, i) => {
    // Near zero, where terms cancel, the error is that of the terms.
    const magnitude = largest(rows) * (rows.length / biases[i]!.length);
    const sums = columnSums(rows, biases[i]!.length);
    draw.agree(`dbias ${i}`, biasGradients[i]!, sums, () => relative * Math.max(1, magnitude));
  });
  const dn = [
    q.backward(n, upstream[0], relative),
    k.backward(n, upstream[1], relative),
    v.backward(n, upstream[2], relative),
  ].reduce((sum, part) => sum.map((value, i) => value + part[i]!));
  half.agreeGradients(dx, dgain, dn, relative);
  [q, k, v, o].forEach((layer) => layer.release());
}

/** Documents of all lengths, from one position to whole sequences. */
function drawnDocuments(draw: Draw, batch: number, time: number): Int32Array {
  const share = draw.of([0.01, 0.1, 0.7]);
  let begin = 0;
  return Int32Array.from({ length: batch * time }, (_, row) => {
    const position = row % time;
    if (position === 0) begin = 0;
    else if (draw.below(1000) < 1000 * share) begin = position;
    return begin;
  });
}

function columnSums(rows: Float64Array, columns: number): Float64Array {
  const sums = new Float64Array(columns);
  rows.forEach((value, i) => (sums[i % columns]! += value));
  return sums;
}
