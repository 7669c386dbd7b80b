import { broadcast_util, getKernelsForBackend, registerKernel, util } from '@tensorflow/tfjs-core';
import type {
  KernelConfig,
  KernelFunc,
  NamedAttrMap,
  NamedTensorInfoMap,
  TensorInfo,
} from '@tensorflow/tfjs-core';
import type { NativeBackend } from './nativeBackend.js';

/** A kernel that takes what it can do well and leaves the rest (null) to tfjs-backend-cpu. */
type HotKernel = (
  native: NativeBackend,
  inputs: NamedTensorInfoMap,
  attributes: NamedAttrMap,
) => TensorInfo | null;

const hotKernels: Record<string, HotKernel> = {
  BatchMatMul: matMul,
  _FusedMatMul: matMul,
  Add: add,
  Multiply: multiply,
};

/** Kernels that share the data of their input by counting references, never by a view. */
const sharingKernels = new Set(['Identity', 'Reshape']);

/** Gives the backend `native` every kernel of tfjs-backend-cpu, the hot ones replaced. Once per process. */
export function registerNativeKernels(): void {
  if (getKernelsForBackend('native').length > 0) return;
  for (const kernel of getKernelsForBackend('cpu')) {
    registerKernel({ ...kernel, backendName: 'native', kernelFunc: nativeKernel(kernel) });
  }
}

function nativeKernel(kernel: KernelConfig): KernelFunc {
  if (sharingKernels.has(kernel.kernelName)) return kernel.kernelFunc;
  const hot = hotKernels[kernel.kernelName];
  return (call) => {
    const native = call.backend as NativeBackend;
    const inputs = call.inputs as NamedTensorInfoMap;
    const result = hot?.(native, inputs, call.attrs ?? {}) ?? null;
    if (result !== null) return result;
    // Slice, Split and others may return views of their input.
    for (const input of Object.values(inputs)) if (input?.dataId) native.exclude(input);
    return kernel.kernelFunc(call);
  };
}

/** [..., m, k] x [..., k, n], either transposed, batch dimensions broadcast. */
function matMul(
  native: NativeBackend,
  inputs: NamedTensorInfoMap,
  attributes: NamedAttrMap,
): TensorInfo | null {
  const { a, b, bias } = inputs;
  if (a === undefined || b === undefined || bias || (attributes['activation'] ?? 'linear') !== 'linear')
    return null;
  if (a.dtype !== 'float32' || b.dtype !== 'float32') return null;
  const transposeA = attributes['transposeA'] === true;
  const transposeB = attributes['transposeB'] === true;
  const [aRows = 0, aColumns = 0] = a.shape.slice(-2);
  const [bRows = 0, bColumns = 0] = b.shape.slice(-2);
  const [m, k] = transposeA ? [aColumns, aRows] : [aRows, aColumns];
  const [kOfB, n] = transposeB ? [bColumns, bRows] : [bRows, bColumns];
  util.assert(
    k === kOfB,
    () => `Inner dimensions of [${a.shape.join()}] x [${b.shape.join()}] differ: ${k} and ${kOfB}`,
  );

  const aBatch = a.shape.slice(0, -2);
  const bBatch = b.shape.slice(0, -2);
  const batchShape = broadcast_util.assertAndGetBroadcastShape(aBatch, bBatch);
  const batch = util.sizeFromShape(batchShape);
  if (batch * m * n * k === 0) return null;

  const { info, values: c } = native.outputInfo([...batchShape, m, n]);
  const aValues = native.array(a);
  const bValues = native.array(b);
  const multiplyRange = (cPart: Float32Array, aPart: Float32Array, bPart: Float32Array, count: number) =>
    native.addon.matmul(cPart, aPart, bPart, count, m, n, k, transposeA, transposeB, native.precision);
  if (util.sizeFromShape(aBatch) === batch && util.sizeFromShape(bBatch) === batch) {
    multiplyRange(c, aValues, bValues, batch);
    return info;
  }
  for (let index = 0; index < batch; index++) {
    const aStart = broadcastIndex(index, batchShape, aBatch) * m * k;
    const bStart = broadcastIndex(index, batchShape, bBatch) * k * n;
    multiplyRange(
      c.subarray(index * m * n, (index + 1) * m * n),
      aValues.subarray(aStart, aStart + m * k),
      bValues.subarray(bStart, bStart + k * n),
      1,
    );
  }
  return info;
}

/** Flat position in `from`, whose missing and single dimensions repeat, of a flat position in `to`. */
function broadcastIndex(index: number, to: number[], from: number[]): number {
  let position = 0;
  let stride = 1;
  let rest = index;
  for (let axis = to.length - 1; axis >= 0; axis--) {
    const size = to[axis] ?? 1;
    const ownSize = from[axis - (to.length - from.length)] ?? 1;
    if (ownSize > 1) {
      position += (rest % size) * stride;
      stride *= ownSize;
    }
    rest = Math.floor(rest / size);
  }
  return position;
}

function add(native: NativeBackend, inputs: NamedTensorInfoMap): TensorInfo | null {
  const { a, b } = inputs;
  if (a === undefined || b === undefined || !isPlainPair(a, b)) return null;
  if (native.ownsGradients && native.isSole(a)) {
    // In such a backward pass tfjs adds for one reason only: to sum the gradients of a tensor with several uses. It
    // disposes the first afterwards, so the sum takes over its buffer.
    native.addon.addInPlace(native.array(a), native.array(b));
    native.incRef(a.dataId);
    return { dataId: a.dataId, shape: a.shape, dtype: 'float32' };
  }
  const { info, values } = native.outputInfo(a.shape);
  values.set(native.array(a));
  native.addon.addInPlace(values, native.array(b));
  return info;
}

function multiply(native: NativeBackend, inputs: NamedTensorInfoMap): TensorInfo | null {
  const { a, b } = inputs;
  if (a === undefined || b === undefined || a.dtype !== 'float32' || b.dtype !== 'float32') return null;
  if (isPlainPair(a, b)) {
    const { info, values } = native.outputInfo(a.shape);
    const x = native.array(a);
    const y = native.array(b);
    for (let i = 0; i < values.length; i++) values[i] = x[i]! * y[i]!;
    return info;
  }
  const [whole, single] = util.sizeFromShape(b.shape) === 1 ? [a, b] : [b, a];
  if (util.sizeFromShape(single.shape) !== 1 || single.shape.length > whole.shape.length) return null;
  const { info, values } = native.outputInfo(whole.shape);
  const x = native.array(whole);
  const factor = native.array(single)[0]!;
  for (let i = 0; i < values.length; i++) values[i] = x[i]! * factor;
  return info;
}

function isPlainPair(a: TensorInfo, b: TensorInfo): boolean {
  return a.dtype === 'float32' && b.dtype === 'float32' && util.arraysEqual(a.shape, b.shape);
}
