import * as tf from '@tensorflow/tfjs-core';
import type { GradConfig, NamedAttrMap, Tensor } from '@tensorflow/tfjs-core';

/**
 * Registers the derivatives of the tfjs kernels used by the plain definitions. tfjs-core has them in files that Node cannot import
 * (extensionless ES modules inside a CommonJS package), and the union package that bundles them is ten times the size. Derivatives that are
 * already registered, as by tfjs-node, stay.
 */
export function registerGradients(): void {
  for (const config of gradients) {
    if (!tf.getGradient(config.kernelName)) tf.registerGradient(config);
  }
}

type GradientOf = (dy: Tensor, saved: Tensor[], attributes: NamedAttrMap) => Record<string, () => Tensor>;

function derivative(
  kernelName: string,
  saves: Pick<GradConfig, 'inputsToSave' | 'outputsToSave'>,
  gradFunc: GradientOf,
): GradConfig {
  // With one output tfjs passes one dy.
  return {
    kernelName,
    ...saves,
    gradFunc: (dy, saved, attributes) => gradFunc(dy as Tensor, saved, attributes),
  };
}

const bothInputs = { inputsToSave: ['a', 'b'] };
const x = { inputsToSave: ['x'] };
const result = { outputsToSave: [true] };

const gradients: GradConfig[] = [
  derivative('Add', bothInputs, (dy, [a, b]) => ({
    a: () => unbroadcast(dy, a!),
    b: () => unbroadcast(dy, b!),
  })),
  derivative('Sub', bothInputs, (dy, [a, b]) => ({
    a: () => unbroadcast(dy, a!),
    b: () => unbroadcast(tf.neg(dy), b!),
  })),
  derivative('Multiply', bothInputs, (dy, [a, b]) => ({
    a: () => unbroadcast(tf.mul(dy, b!), a!),
    b: () => unbroadcast(tf.mul(dy, a!), b!),
  })),
  derivative('Neg', {}, (dy) => ({ x: () => tf.neg(dy) })),
  derivative('Square', x, (dy, [x]) => ({ x: () => tf.mul(dy, tf.mul(x!, 2)) })),
  derivative('Rsqrt', result, (dy, [y]) => ({
    x: () => tf.mul(dy, tf.mul(tf.mul(y!, tf.square(y!)), -0.5)),
  })),
  derivative('Sigmoid', result, (dy, [y]) => ({ x: () => tf.mul(dy, tf.mul(y!, tf.sub(1, y!))) })),
  derivative('Tanh', result, (dy, [y]) => ({ x: () => tf.mul(dy, tf.sub(1, tf.square(y!))) })),
  derivative('Identity', {}, (dy) => ({ x: () => tf.clone(dy) })),
  derivative('Reshape', x, (dy, [x]) => ({ x: () => tf.reshape(dy, x!.shape) })),
  derivative('Transpose', {}, (dy, _, { perm }) => ({
    x: () => tf.transpose(dy, inverse(perm as number[])),
  })),
  derivative('Sum', x, (dy, [x], { axis }) => ({ x: () => spread(dy, x!, axis as number | number[]) })),
  derivative('Slice', x, (dy, [x], { begin }) => ({
    x: () =>
      tf.pad(
        dy,
        dy.shape.map((size, axis) => padding(size, (begin as number[])[axis] ?? 0, x!.shape[axis] ?? 0)),
      ),
  })),
  { kernelName: 'Concat', saveAllInputs: true, gradFunc: concatGradient },
  derivative('GatherV2', { inputsToSave: ['x', 'indices'] }, (dy, [x, indices], { axis }) => ({
    x: () => {
      if (axis !== 0 || indices!.rank !== 1)
        throw new Error('Rows are gathered along axis 0, by a list of indices');
      return tf.unsortedSegmentSum(dy, indices as tf.Tensor1D, x!.shape[0] ?? 0);
    },
    indices: () => tf.zerosLike(indices!),
  })),
  derivative('Softmax', result, (dy, [y]) => ({
    logits: () => {
      const weighted = tf.mul(dy, y!);
      return tf.sub(weighted, tf.mul(tf.sum(weighted, -1, true), y!));
    },
  })),
  derivative('BatchMatMul', bothInputs, (dy, [a, b], { transposeA, transposeB }) => ({
    // y = op(a) op(b): d op(a) = dy op(b)ᵀ, d op(b) = op(a)ᵀ dy, each transposed back if op transposes.
    a: () =>
      unbroadcast(
        transposeA ? tf.matMul(b!, dy, !!transposeB, true) : tf.matMul(dy, b!, false, !transposeB),
        a!,
      ),
    b: () =>
      unbroadcast(
        transposeB ? tf.matMul(dy, a!, true, !!transposeA) : tf.matMul(a!, dy, !transposeA, false),
        b!,
      ),
  })),
];

/** Sums dy over the axes along which `input` was broadcast. */
function unbroadcast(dy: Tensor, input: Tensor): Tensor {
  const axes = tf.broadcast_util.getReductionAxes(input.shape, dy.shape);
  return tf.reshape(axes.length > 0 ? tf.sum(dy, axes) : dy, input.shape);
}

/** Repeats the gradient of a sum along the axes that were summed. */
function spread(dy: Tensor, input: Tensor, axis: number | number[]): Tensor {
  const shape = input.shape.slice();
  for (const summed of tf.util.parseAxisParam(axis, input.shape)) shape[summed] = 1;
  return tf.mul(tf.reshape(dy, shape), tf.ones(input.shape));
}

function concatGradient(
  dy: Tensor | Tensor[],
  saved: Tensor[],
  { axis }: NamedAttrMap,
): Record<string, () => Tensor> {
  const whole = dy as Tensor;
  const [along = 0] = tf.util.parseAxisParam(axis as number, whole.shape);
  const parts = tf.split(
    whole,
    saved.map((input) => input.shape[along] ?? 0),
    along,
  );
  return Object.fromEntries(parts.map((part, index) => [String(index), () => part]));
}

function inverse(permutation: number[]): number[] {
  const order = new Array<number>(permutation.length);
  permutation.forEach((from, to) => (order[from] = to));
  return order;
}

function padding(size: number, before: number, whole: number): [number, number] {
  return [before, whole - size - before];
}
