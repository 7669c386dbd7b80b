import * as tf from '@tensorflow/tfjs-core';
import type { Scalar, Tensor, Tensor1D, Tensor2D } from '@tensorflow/tfjs-core';
import { unmeasured, type DeviceSpeed } from '../../plan/deviceSpeed.js';
import type * as api from '../device.js';
import { requireSameHead } from '../deviceFaults.js';
import { documentAngles } from '../documentAngles.js';
import { dropoutMask } from '../dropout.js';
import type { HostCache } from '../hostCache.js';
import { beginsOf } from '../hostDocuments.js';
import { HostObjects } from '../hostObjects.js';
import type { HostResult } from '../hostResult.js';
import { decode, encode } from '../momentCodes.js';
import * as definition from './definitions.js';
import { apolloFactor, lengthOf, loraMuonStep, muonStep, nesterov, shadowOf } from './matrixOptimizers.js';
import { singularValues } from './singularValues.js';

/**
 * The plain definitions as a device, on any tfjs backend: `reference` in plain JavaScript, `tensorflow` with TensorFlow's kernels. Values
 * are on the host between calls; a backward pass differentiates its definition from the half's input.
 */
export class TfjsDevice extends HostObjects implements api.Device {
  private readonly counts = new Map<string, number>();

  constructor(
    readonly description: api.DeviceDescription,
    /** The backend's name in tfjs. */
    private readonly backendName: string,
  ) {
    super();
  }

  kernelCounts(): ReadonlyMap<string, number> {
    return this.counts;
  }

  close(): void {
    this.trim();
  }

  embeddingForward(
    y: api.DeviceBuffer,
    table: api.DeviceBuffer,
    ids: Int32Array,
    { vocabulary, hidden }: api.TableShape,
  ): void {
    requireIds(ids, vocabulary);
    this.run('embeddingForward', () => {
      this.write(y, definition.embedding(this.matrix(table, vocabulary, hidden), ids));
    });
  }

  embeddingBackward(
    dtable: api.DeviceBuffer,
    dy: api.DeviceBuffer,
    ids: Int32Array,
    { rows, vocabulary, hidden }: api.TableShape,
    adds: boolean,
  ): void {
    this.run('embeddingBackward', () => {
      const made = tf.unsortedSegmentSum(
        this.matrix(dy, rows, hidden),
        tf.tensor1d(ids, 'int32'),
        vocabulary,
      );
      this.write(dtable, adds ? tf.add(this.matrix(dtable, vocabulary, hidden), made) : made);
    });
  }

  attentionHalfForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    half: api.AttentionHalf,
    { cache }: api.ForwardMode,
  ): null {
    const { batch, time, hidden } = half.shape;
    const keysAndValues = cache?.keysAndValues as HostCache | undefined;
    const position = keysAndValues?.length ?? 0;
    this.run('attentionHalfForward', () => {
      const attend = (q: Tensor2D, k: Tensor2D, v: Tensor2D): Tensor2D => {
        if (keysAndValues === undefined)
          return definition.causalAttention(q, k, v, half.shape, beginsOf(half.documents));
        keysAndValues.append(cache!.block, valuesOf(k), valuesOf(v), k.shape[1]);
        if (position === 0) return definition.causalAttention(q, k, v, half.shape, null);
        const out = keysAndValues.attend(cache!.block, valuesOf(q), half.shape, new Float32Array(q.size));
        return tf.tensor2d(out, q.shape);
      };
      const layers = this.layersOf({ q: half.q, k: half.k, v: half.v, o: half.o }, batch * time, time);
      const input = this.matrix(x, batch * time, hidden);
      const gain = this.vector(half.gain);
      const angles = this.anglesOf(half, position);
      const headGains = this.headGainsOf(half.headNorms);
      this.write(y, definition.attentionHalf(input, gain, layers, headGains, half, angles, attend));
    });
    return null;
  }

  attentionHalfBackward(
    gradients: api.AttentionGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    _state: api.HalfState | null,
    half: api.AttentionHalf,
  ): void {
    const { q, k, v, o, shape } = half;
    this.run('attentionHalfBackward', () => {
      const angles = this.anglesOf(half, 0);
      const headGains = this.headGainsOf(half.headNorms);
      const { headNorms } = gradients;
      const more: [api.DeviceBuffer, Tensor][] =
        headGains === null
          ? []
          : [
              [headNorms!.q, headGains.q],
              [headNorms!.k, headGains.k],
            ];
      this.differentiate<'q' | 'k' | 'v' | 'o'>(
        { q, k, v, o },
        gradients,
        dy,
        x,
        half,
        shape,
        (input, gain, layers) => definition.attentionHalf(input, gain, layers, headGains, half, angles),
        more,
      );
    });
  }

  mlpHalfForward(y: api.DeviceBuffer, x: api.DeviceBuffer, half: api.MlpHalf): null {
    const { batch, time, hidden } = half.shape;
    this.run('mlpHalfForward', () => {
      const layers = this.layersOf({ gate: half.gate, up: half.up, down: half.down }, batch * time, time);
      const input = this.matrix(x, batch * time, hidden);
      this.write(y, definition.mlpHalf(input, this.vector(half.gain), layers, half));
    });
    return null;
  }

  mlpHalfBackward(
    gradients: api.MlpGradients,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    _state: api.HalfState | null,
    half: api.MlpHalf,
  ): void {
    const { gate, up, down, shape } = half;
    this.run('mlpHalfBackward', () => {
      this.differentiate<'gate' | 'up' | 'down'>(
        { gate, up, down },
        gradients,
        dy,
        x,
        half,
        shape,
        (input, gain, layers) => definition.mlpHalf(input, gain, layers, half),
      );
    });
  }

  releaseState(_state: api.HalfState | null): void {
    // There is no state: a backward pass starts from the half's input.
  }

  rmsNormForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    { rows, hidden, epsilon }: api.NormShape,
  ): null {
    this.run('rmsNormForward', () => {
      this.write(y, definition.rmsNorm(this.matrix(x, rows, hidden), this.vector(gain), epsilon));
    });
    return null;
  }

  rmsNormBackward(
    gradients: { dx: api.DeviceBuffer; gain: api.DeviceBuffer },
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    _state: api.HalfState | null,
    { rows, hidden, epsilon }: api.NormShape,
  ): void {
    this.run('rmsNormBackward', () => {
      const norm = (input: Tensor, weight: Tensor) =>
        definition.rmsNorm(input as Tensor2D, weight as Tensor1D, epsilon);
      const inputs = [this.matrix(x, rows, hidden), this.vector(gain)];
      const [dx, dgain] = tf.grads(norm)(inputs, this.matrix(dy, rows, hidden));
      this.write(gradients.dx, dx!);
      this.write(gradients.gain, dgain!);
    });
  }

  headCrossEntropy(
    result: api.ResultBuffer,
    gradients: { dx: api.DeviceBuffer; head: api.DeviceBuffer } | null,
    { shape, x, head, targets, scale, firstRow, precision }: api.HeadPass,
  ): void {
    requireSameHead(this.description.name, { precision });
    const { rows, vocabulary, hidden } = shape;
    this.run('headCrossEntropy', () => {
      const inputs = [this.matrix(x, rows, hidden), this.matrix(head, vocabulary, hidden)] as const;
      const chosen = definition.targetLogProbabilities(...inputs, targets);
      const losses = valuesOf(tf.neg(tf.sum(chosen, 1)));
      const sum = valuesOf(tf.neg(tf.sum(chosen)))[0]!;
      (result as HostResult).addLosses({ losses, sum, scale: Math.fround(scale), firstRow });
      if (gradients === null) return;
      const loss = (input: Tensor, table: Tensor) =>
        definition.headCrossEntropy(input as Tensor2D, table as Tensor2D, targets, scale);
      const [dx, dhead] = tf.grads(loss)([...inputs]);
      this.write(gradients.dx, dx!);
      this.write(gradients.head, dhead!);
    });
  }

  headLogits(
    logits: api.DeviceBuffer,
    { shape, x, head, firstRow }: Pick<api.HeadPass, 'shape' | 'x' | 'head' | 'firstRow'>,
  ): void {
    const { rows, vocabulary, hidden } = shape;
    this.run('headLogits', () => {
      const wanted = tf.slice(this.matrix(x, rows, hidden), [firstRow, 0]);
      this.write(logits, tf.matMul(wanted, this.matrix(head, vocabulary, hidden), false, true));
    });
  }

  addInPlace(accumulator: api.DeviceBuffer, x: api.DeviceBuffer): void {
    this.run('addInPlace', () => this.write(accumulator, tf.add(this.vector(accumulator), this.vector(x))));
  }

  scaleInPlace(values: api.DeviceBuffer, factor: number): void {
    this.run('scaleInPlace', () => this.write(values, tf.mul(this.vector(values), factor)));
  }

  sumSquares(result: api.ResultBuffer, buffers: readonly api.DeviceBuffer[]): void {
    this.run('sumSquares', () => {
      for (const buffer of buffers) {
        if (buffer.length === 0) continue;
        const [sum] = valuesOf(tf.sum(tf.square(this.vector(buffer))));
        (result as HostResult).addSquares(sum!);
      }
    });
  }

  adamW({ members }: api.ParameterGroup, { clip, ...options }: api.AdamWOptions): void {
    const gradientScale = (clip.result as HostResult).clipFactor(clip.normMax);
    if (gradientScale === null) return;
    const { learningRate, beta1, beta2, epsilon, weightDecay, correction1, correction2 } = options;
    for (const { parameter, gradient, first, second } of members) {
      this.run('adamW', () => {
        const scaled = tf.mul(this.vector(gradient), gradientScale);
        const m = tf.add(tf.mul(this.momentOf(first), beta1), tf.mul(scaled, 1 - beta1));
        const v = tf.add(tf.mul(this.momentOf(second), beta2), tf.mul(tf.square(scaled), 1 - beta2));
        const step = tf.div(tf.div(m, correction1), tf.add(tf.sqrt(tf.div(v, correction2)), epsilon));
        const before = this.vector(parameter);
        this.write(
          parameter,
          tf.sub(before, tf.mul(tf.add(step, tf.mul(before, weightDecay)), learningRate)),
        );
        this.writeMoment(first, m);
        this.writeMoment(second, v);
      });
    }
  }

  muon({ shape: { rows, columns }, members }: api.MatrixGroup, { clip, ...step }: api.MuonOptions): void {
    const gradientScale = (clip.result as HostResult).clipFactor(clip.normMax);
    if (gradientScale === null) return;
    for (const member of members) {
      this.run('muon', () => {
        const u = this.momentum(member, rows, columns, gradientScale, step.momentum)!;
        this.write(member.parameter, muonStep(this.matrix(member.parameter, rows, columns), u, step));
      });
    }
  }

  loraMuon({ shape, members }: api.AdapterGroup, { clip, scale, ...step }: api.LoraMuonOptions): void {
    const gradientScale = (clip.result as HostResult).clipFactor(clip.normMax);
    if (gradientScale === null) return;
    const { inFeatures, outFeatures, rank } = shape;
    for (const { a, b } of members) {
      this.run('loraMuon', () => {
        const factors = [
          this.matrix(a.parameter, inFeatures, rank),
          this.matrix(b.parameter, rank, outFeatures),
        ] as const;
        const along = [
          this.momentum(a, inFeatures, rank, gradientScale, step.momentum),
          this.momentum(b, rank, outFeatures, gradientScale, step.momentum)!,
        ] as const;
        const next = loraMuonStep(factors, along, scale, step);
        if (next === null) return;
        this.write(a.parameter, next.a);
        this.write(b.parameter, next.b);
      });
    }
  }

  apolloMini(
    { shape: { rows, columns }, members }: api.ShadowGroup,
    { clip, ...options }: api.AdamWOptions,
  ): void {
    const gradientScale = (clip.result as HostResult).clipFactor(clip.normMax);
    if (gradientScale === null) return;
    const { learningRate, beta1, beta2, epsilon, weightDecay, correction1, correction2 } = options;
    for (const { parameter, gradient, projection, first, second, norm } of members) {
      this.run('apolloMini', () => {
        const g = tf.mul<Tensor2D>(this.matrix(gradient, rows, columns), gradientScale);
        const shadow = shadowOf(g, this.vector(projection));
        const m = tf.add<Tensor1D>(tf.mul(this.vector(first), beta1), tf.mul(shadow, 1 - beta1));
        const v = tf.add<Tensor1D>(tf.mul(this.vector(second), beta2), tf.mul(tf.square(shadow), 1 - beta2));
        const step = tf.div<Tensor1D>(
          tf.div(m, correction1),
          tf.add(tf.sqrt(tf.div(v, correction2)), epsilon),
        );
        const found = apolloFactor(step, shadow, lengthOf(g), this.floats(norm)[0]!);
        const kept = tf.mul(this.matrix(parameter, rows, columns), 1 - learningRate * weightDecay);
        this.write(parameter, tf.sub(kept, tf.mul(g, learningRate * found.factor)));
        this.write(first, m);
        this.write(second, v);
        this.floats(norm)[0] = found.norm;
      });
    }
  }

  packBase(_weight: api.DeviceBuffer, inFeatures: number, outFeatures: number): api.FrozenBase {
    return { inFeatures, outFeatures, bytes: 0 }; // products read the weight itself
  }

  repackBase(_base: api.FrozenBase, _weight: api.DeviceBuffer): void {
    // Products read the weight itself.
  }

  readonly packMergedReadsWeight = true;

  packMerged(_base: api.FrozenBase, _weight: api.DeviceBuffer, _adapter: api.LayerAdapter): void {
    // Products read weight and adapter separately, whatever the graph.
  }

  releaseBase(_base: api.FrozenBase): void {
    // Nothing is packed, so nothing has to be freed.
  }

  park(_weight: api.DeviceBuffer, _folder: string | null): void {
    // Products read it at every step, so it is not parked.
  }

  mergeAdapter(
    into: api.DeviceBuffer | null,
    weight: api.DeviceBuffer,
    adapter: api.LayerAdapter,
    { inFeatures, outFeatures }: { inFeatures: number; outFeatures: number },
  ): Promise<{ finite: boolean; deltaNorm: number }> {
    const { a, b, rank, scale } = adapter;
    return Promise.resolve(
      this.run('mergeAdapter', () => {
        const { merged, squares } = definition.merge(
          this.matrix(weight, inFeatures, outFeatures),
          this.matrix(a, inFeatures, rank),
          this.matrix(b, rank, outFeatures),
          typeof scale === 'number' ? scale : Math.tanh(this.floats(scale)[0]!),
        );
        const deltaNorm = Math.sqrt(valuesOf(squares)[0]!);
        const finite = Number.isFinite(deltaNorm) && valuesOf(merged).every(Number.isFinite);
        if (into !== null && finite) this.write(into, merged);
        return { finite, deltaNorm };
      }),
    );
  }

  layerForward(y: api.DeviceBuffer, x: api.DeviceBuffer, rows: number, layer: api.Layer): void {
    this.run('layerForward', () => {
      const adapter = layer.adapter && { ...layer.adapter, dropout: null };
      const { of } = this.layersOf({ of: { ...layer, adapter, bias: null } }, rows, rows);
      this.write(y, definition.layer(this.matrix(x, rows, layer.inFeatures), of));
    });
  }

  matmul(
    c: api.DeviceBuffer,
    a: api.DeviceBuffer,
    b: api.DeviceBuffer,
    { m, n, k, transposeA, transposeB }: api.MatmulShape,
  ): void {
    this.run('matmul', () => {
      const left = transposeA ? this.matrix(a, k, m) : this.matrix(a, m, k);
      const right = transposeB ? this.matrix(b, n, k) : this.matrix(b, k, n);
      this.write(c, tf.matMul(left, right, transposeA, transposeB));
    });
  }

  singularValues(matrix: Float32Array, rows: number, columns: number): Promise<Float64Array> {
    return Promise.resolve(singularValues(matrix, rows, columns));
  }

  measure(): Promise<DeviceSpeed> {
    return Promise.resolve(unmeasured(this.description));
  }

  /** Runs a definition on this device's backend and counts it; its tensors are disposed afterwards. */
  private run<T>(name: string, body: () => T): T {
    this.counts.set(name, (this.counts.get(name) ?? 0) + 1);
    // tfjs has a single global backend; switching is immediate, since both backends start synchronously.
    if (tf.getBackend() !== this.backendName) void tf.setBackend(this.backendName);
    let result: T;
    tf.tidy(() => {
      result = body();
    });
    return result!;
  }

  /** Gradients of a half with respect to its input, its gain and the wanted parameters of its layers. */
  private differentiate<Name extends string>(
    layers: Record<Name, api.Layer>,
    gradients: { dx: api.DeviceBuffer; gain: api.DeviceBuffer } & Record<Name, api.LayerGradients>,
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    half: Pick<api.MlpHalf, 'gain'>,
    { batch, time, hidden }: Pick<api.MlpShape, 'batch' | 'time' | 'hidden'>,
    define: (x: Tensor2D, gain: Tensor1D, layers: Record<Name, definition.LayerTensors>) => Tensor2D,
    /** Destinations of gradients with respect to other inputs of the definition. */
    more: readonly [api.DeviceBuffer, Tensor][] = [],
  ): void {
    const rows = batch * time;
    const tensors = this.layersOf(layers, rows, time);
    const inputs: Tensor[] = [this.matrix(x, rows, hidden), this.vector(half.gain)];
    const targets: api.DeviceBuffer[] = [gradients.dx, gradients.gain];
    const want = (target: api.DeviceBuffer | null, tensor: Tensor | number | null | undefined): void => {
      if (target === null || !(tensor instanceof tf.Tensor)) return;
      targets.push(target);
      inputs.push(tensor);
    };
    for (const [target, tensor] of more) want(target, tensor);
    for (const name of Object.keys(layers) as Name[]) {
      const { weight, adapter, bias } = tensors[name];
      const wanted = gradients[name];
      want(wanted.weight, weight);
      want(wanted.a, adapter?.a);
      want(wanted.b, adapter?.b);
      want(wanted.scale, adapter?.scale);
      want(wanted.bias, bias);
    }
    const found = tf.grads((...given: Tensor[]) => {
      // The tensors of the layers are the inputs themselves.
      return define(given[0] as Tensor2D, given[1] as Tensor1D, tensors);
    })(inputs, this.matrix(dy, rows, hidden));
    found.forEach((gradient, index) => this.write(targets[index]!, gradient));
  }

  private layersOf<Name extends string>(
    layers: Record<Name, api.Layer>,
    rows: number,
    time: number,
  ): Record<Name, definition.LayerTensors> {
    const tensorsOf = (layer: api.Layer): definition.LayerTensors => {
      const { weight, adapter, bias, inFeatures, outFeatures } = layer;
      return {
        weight: this.matrix(weight, inFeatures, outFeatures),
        bias: bias && this.vector(bias),
        adapter: adapter && {
          a: this.matrix(adapter.a, inFeatures, adapter.rank),
          b: this.matrix(adapter.b, adapter.rank, outFeatures),
          scale:
            typeof adapter.scale === 'number'
              ? adapter.scale
              : (tf.reshape(this.vector(adapter.scale), []) as Scalar),
          mask: this.maskOf(layer, adapter, rows, time),
        },
      };
    };
    const entries = Object.entries<api.Layer>(layers).map(([name, layer]) => [name, tensorsOf(layer)]);
    return Object.fromEntries(entries) as Record<Name, definition.LayerTensors>;
  }

  private maskOf(
    layer: api.Layer,
    { dropout }: api.LayerAdapter,
    rows: number,
    time: number,
  ): Tensor2D | null {
    if (dropout === null) return null;
    const mask = new Float32Array(rows * layer.inFeatures);
    dropoutMask(mask, dropout, layer, time);
    return tf.tensor2d(mask, [rows, layer.inFeatures]);
  }

  private headGainsOf(norms: api.HeadNorms | null): definition.HeadGains | null {
    return norms && { q: this.vector(norms.q), k: this.vector(norms.k) };
  }

  private anglesOf(
    { angles, shape, documents }: api.AttentionHalf,
    position: number,
  ): definition.AngleTensors | null {
    if (angles === null) return null;
    const half = shape.headDim / 2;
    const begins = beginsOf(documents);
    if (begins !== null) {
      const table = { cos: this.floats(angles.cos), sin: this.floats(angles.sin) };
      const rows = documentAngles(table, begins, shape.time, half);
      const size: [number, number] = [begins.length, half];
      return { cos: tf.tensor2d(rows.cos, size), sin: tf.tensor2d(rows.sin, size) };
    }
    const part = (buffer: api.DeviceBuffer) =>
      tf.tensor2d(this.floats(buffer).slice(position * half, (position + shape.time) * half), [
        shape.time,
        half,
      ]);
    return { cos: part(angles.cos), sin: part(angles.sin) };
  }

  /** A copy of its own: tfjs may keep the array that it is given. */
  private matrix(buffer: api.DeviceBuffer, rows: number, columns: number): Tensor2D {
    return tf.tensor2d(this.floats(buffer).slice(), [rows, columns]);
  }

  private vector(buffer: api.DeviceBuffer): Tensor1D {
    return tf.tensor1d(this.floats(buffer).slice());
  }

  private write(buffer: api.DeviceBuffer, tensor: Tensor): void {
    this.floats(buffer).set(valuesOf(tensor));
  }

  private momentOf(moment: api.Moment): Tensor1D {
    return 'codes' in moment ? tf.tensor1d(decode(this.coded(moment))) : this.vector(moment);
  }

  private writeMoment(moment: api.Moment, values: Tensor): void {
    if ('codes' in moment) encode(this.coded(moment), valuesOf(values));
    else this.write(moment, values);
  }

  /** Updates the moment of a matrix and returns the direction of its step; null for a matrix that is only read. */
  private momentum(
    { gradient, first }: api.MatrixMember,
    rows: number,
    columns: number,
    gradientScale: number,
    momentum: number,
  ): Tensor2D | null {
    if (gradient === null || first === null) return null;
    const g = tf.mul<Tensor1D>(this.vector(gradient), gradientScale);
    const { m, u } = nesterov(this.momentOf(first), g, momentum);
    this.writeMoment(first, m);
    return tf.reshape(u, [rows, columns]);
  }

  private coded({ codes, scales }: api.CodedMoment) {
    return { codes: this.codes(codes), scales: this.floats(scales) };
  }
}

function requireIds(ids: Int32Array, vocabulary: number): void {
  const wrong = ids.findIndex((id) => id < 0 || id >= vocabulary);
  if (wrong >= 0) throw new RangeError(`ids[${wrong}] must be in [0, ${vocabulary}), got ${ids[wrong]}`);
}

function valuesOf(tensor: Tensor): Float32Array {
  return tensor.dataSync<'float32'>();
}
