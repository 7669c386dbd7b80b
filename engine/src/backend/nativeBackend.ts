import { backend, engine, util } from '@tensorflow/tfjs-core';
import type { backend_util, DataId, DataType, Tensor, TensorInfo } from '@tensorflow/tfjs-core';
import { MathBackendCPU } from '@tensorflow/tfjs-backend-cpu';
import { BufferPool } from './bufferPool.js';
import type { BasePrecision, NativeAddon, ProductPrecision } from './nativeAddon.js';

/** Free buffers kept for the next step; a step of llama-130m with 4096 tokens turns over about this much. */
const freeBytesMax = 3 * 2 ** 30;

interface TensorData {
  values?: backend_util.BackendValues;
  dtype: DataType;
  refCount: number;
  /** The values came from the pool and nobody but this backend has ever held them. */
  recycled?: boolean;
  /** The values lie in memory of `mapFloats`. */
  mapped?: boolean;
}

/** A tensor to be written by a native kernel: its array holds anything until then. */
export interface Output<T extends Tensor> {
  tensor: T;
  values: Float32Array;
}

/**
 * The tfjs backend `native`: data in plain typed arrays as in tfjs-backend-cpu, whose kernels all work on it, hot
 * kernels and fused ops in C++. Buffers of disposed tensors are used again when it is certain that nobody holds them.
 */
export class NativeBackend extends MathBackendCPU {
  private readonly pool = new BufferPool(freeBytesMax);
  private gradientsOwned = false;

  constructor(
    readonly addon: NativeAddon,
    /** Arithmetic of products, unless a caller asks for another. */
    readonly precision: ProductPrecision,
    /** What frozen bases are kept in. */
    readonly basePrecision: BasePrecision = precision,
  ) {
    super();
  }

  /** Whether a packed base serves products of that precision; else they are made from the float32 weight. */
  usesPacked(precision: ProductPrecision | undefined): boolean {
    return precision === undefined || (precision === this.precision && precision === this.basePrecision);
  }

  /** A float32 tensor of that shape, tracked by tfjs like any other. */
  output<T extends Tensor>(shape: number[]): Output<T> {
    const { info, values } = this.outputInfo(shape);
    return { tensor: engine().makeTensorFromTensorInfo(info, this) as T, values };
  }

  /** As `output`, for kernels that tfjs calls: it makes the tensor itself. */
  outputInfo(shape: number[]): { info: TensorInfo; values: Float32Array } {
    const values = this.pool.take(util.sizeFromShape(shape));
    const dataId: DataId = {};
    const entry: TensorData = { values, dtype: 'float32', refCount: 1, recycled: true };
    this.data.set(dataId, entry);
    return { info: { dataId, shape, dtype: 'float32' }, values };
  }

  /** The array under a float32 tensor, not a copy: to be used at once and never kept. */
  array(tensor: TensorInfo): Float32Array {
    const { values } = this.data.get(tensor.dataId);
    if (!(values instanceof Float32Array)) throw new Error(`Expected a float32 tensor, not ${tensor.dtype}`);
    return values;
  }

  /** Memory that is no tensor, for what an op keeps between its passes. Holds anything; to be given back. */
  takeBuffer(length: number): Float32Array {
    return this.pool.take(length);
  }

  giveBuffer(buffer: Float32Array): void {
    this.pool.give(buffer);
  }

  /** Whether somebody will ask for gradients of what is computed now. */
  get recordsGradients(): boolean {
    return engine().state.gradientDepth > 0;
  }

  /** From now on the tensor's buffer belongs to the collector: a kernel that is not ours may have made a view of it. */
  exclude(tensor: TensorInfo): void {
    const entry = this.data.get(tensor.dataId) as TensorData;
    entry.recycled = false;
  }

  /**
   * Moves a tensor's values to memory that the system may keep on disk alone; changes to it must be made in place. Where
   * the folder has no room for them they stay where they are: it is a matter of memory alone.
   */
  mapToDisk(tensor: TensorInfo, folder: string): void {
    const entry = this.data.get(tensor.dataId) as TensorData;
    const values = this.array(tensor);
    if (entry.mapped) return this.addon.releasePages(values);
    const mapped = this.mapOrNull(folder, values.length);
    if (mapped === null) return;
    mapped.set(values);
    this.addon.releasePages(mapped);
    entry.values = mapped;
    entry.recycled = false;
    entry.mapped = true;
  }

  private mapOrNull(folder: string, length: number): Float32Array | null {
    try {
      return this.addon.mapFloats(folder, length);
    } catch {
      return null;
    }
  }

  /** Lets go of a mapped tensor's memory until it is used again. Nothing for other tensors. */
  releasePages(tensor: TensorInfo): void {
    if ((this.data.get(tensor.dataId) as TensorData).mapped) this.addon.releasePages(this.array(tensor));
  }

  /** For a change of what steps compute: buffers of sizes that will not be asked for again would stay for good. */
  dropFreeBuffers(): void {
    this.pool.clear();
  }

  /** Whether the tensor is the only one with its data. */
  isSole(tensor: TensorInfo): boolean {
    return this.refCount(tensor.dataId) === 1;
  }

  /**
   * Runs a backward pass whose intermediate gradients belong to it alone: each is given back as soon as its op has used
   * it, and sums of gradients are made in place. tfjs itself would keep them all until the end.
   */
  withOwnedGradients<R>(gradients: () => R): R {
    this.gradientsOwned = true;
    try {
      return gradients();
    } finally {
      this.gradientsOwned = false;
    }
  }

  /** True in the backward pass of `withOwnedGradients`; the tape is open in the forward pass only. */
  get ownsGradients(): boolean {
    return this.gradientsOwned && engine().state.gradientDepth === 0;
  }

  /** A copy: what a caller holds neither changes with an update in place nor keeps a buffer from being used again. */
  override readSync(dataId: DataId): backend_util.BackendValues {
    const values = super.readSync(dataId);
    if (!(values instanceof Float32Array)) return values;
    const copy = values.slice();
    if ((this.data.get(dataId) as TensorData).mapped) this.addon.releasePages(values);
    return copy;
  }

  override disposeData(dataId: DataId, force = false): boolean {
    const entry = this.data.has(dataId) ? (this.data.get(dataId) as TensorData) : null;
    const released = super.disposeData(dataId, force);
    if (released && entry?.recycled) {
      entry.recycled = false;
      this.pool.give(entry.values as Float32Array);
    }
    return released;
  }
}

/** The current tfjs backend when it is ours, else null: then an op takes its plain definition. */
export function currentNative(): NativeBackend | null {
  const current = backend();
  return current instanceof NativeBackend ? current : null;
}
