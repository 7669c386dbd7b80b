import { execFileSync, spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { loadNativeAddon, type PackedBase } from '../../engine/src/backend/nativeAddon.js';

const addon = loadNativeAddon();
const f = (length: number) => new Float32Array(length);
const i32 = (...values: number[]) => Int32Array.from(values);
const base = addon.packBase(f(6), 2, 3, 'float32');
const adamW = {
  learningRate: 1,
  beta1: 0,
  beta2: 0,
  epsilon: 1,
  weightDecay: 0,
  correction1: 1,
  correction2: 1,
  gradientScale: 1,
};
const shared = f(12);

/** Each call has one mistake, and the message names function, argument, what was expected and what came. */
const mistakes: [call: () => unknown, message: string][] = [
  [() => (addon.matmul as (...args: unknown[]) => void)(f(1), f(1)), 'matmul: expected 10 arguments, got 2'],
  [
    () => addon.matmul(f(1), [1] as never, f(1), 1, 1, 1, 1, false, false, 'float32'),
    'matmul: a must be a Float32Array, got object',
  ],
  [
    () => addon.matmul(f(1), new Float64Array(1) as never, f(1), 1, 1, 1, 1, false, false, 'float32'),
    'matmul: a must be a Float32Array, got Float64Array',
  ],
  [
    () => addon.matmul(f(4), f(6), f(5), 1, 2, 2, 3, false, false, 'float32'),
    'matmul: b must hold batch * k * n = 6 elements, got 5',
  ],
  [
    () => addon.matmul(f(4), f(6), f(6), 0, 2, 2, 3, false, false, 'float32'),
    'matmul: batch must be an integer of at least 1, got 0',
  ],
  [
    () => addon.matmul(f(4), f(6), f(6), 1, 2, 2.5, 3, false, false, 'float32'),
    'matmul: n must be an integer of at least 1, got 2.5',
  ],
  [
    () => addon.matmul(f(4), f(6), f(6), 1, 2, 2, NaN, false, false, 'float32'),
    'matmul: k must be an integer of at least 1, got nan',
  ],
  [
    () => addon.matmul(f(4), f(6), f(6), 2 ** 31 - 1, 2 ** 31 - 1, 2 ** 31 - 1, 3, false, false, 'float32'),
    'matmul: batch * m * n does not fit 64 bits',
  ],
  [
    () => addon.matmul(f(4), f(6), f(6), 1, 2, 2, 3, 0 as never, false, 'float32'),
    'matmul: transposeA must be a boolean, got number',
  ],
  [
    () => addon.matmul(f(4), f(6), f(6), 1, 2, 2, 3, false, false, 'float16' as never),
    "matmul: precision must be 'float32' or 'bfloat16', got 'float16'",
  ],
  [
    () =>
      addon.matmul(shared.subarray(2, 6), shared.subarray(0, 3), f(12), 1, 1, 4, 3, false, false, 'float32'),
    'matmul: c must not overlap a',
  ],
  [
    () => addon.packBase(f(6), 2, 2, 'float32'),
    'packBase: w must hold inFeatures * outFeatures = 4 elements, got 6',
  ],
  [
    () => addon.packedBaseBytes({} as PackedBase),
    'packedBaseBytes: base must be a handle made by packBase, got object',
  ],
  [
    () => addon.loraLinearForward(f(3), f(1), f(2), base, f(2), f(4), 1, 1, 1),
    'loraLinearForward: b must hold rank * outFeatures = 3 elements, got 4',
  ],
  [
    () => addon.loraLinearBackward(f(2), f(2), f(3), f(3), f(2), f(2), base, f(2), f(3), 1, 1, 1),
    'loraLinearBackward: xa must hold rows * rank = 1 elements, got 2',
  ],
  [
    () => addon.mergeAdapter(f(6), f(6), f(2), f(3), '1' as never, 2, 1, 3),
    'mergeAdapter: scale must be a number, got string',
  ],
  [
    () => addon.rmsNormForward(f(6), f(3), f(6), f(3), 2, 3, 1e-5),
    'rmsNormForward: rstd must hold rows = 2 elements, got 3',
  ],
  [
    () => addon.rmsNormBackward(f(6), f(3), f(6), f(6), f(2), f(2), 2, 3),
    'rmsNormBackward: gain must hold dim = 3 elements, got 2',
  ],
  [() => addon.rotary(f(3), f(3), f(9), f(9), 1, 1, 1, 3, 0, false), 'rotary: headDim must be even, got 3'],
  [
    () => addon.rotary(f(8), f(8), f(3), f(8), 1, 2, 1, 4, 1, false),
    'rotary: cos must hold at least (firstPosition + time) * headDim / 2 = 6 elements, got 3',
  ],
  [
    () => addon.attentionForward(f(6), f(3), f(6), f(4), f(4), 1, 1, 3, 2, 2, 1, 'float32'),
    'attentionForward: heads must be a multiple of kvHeads, got 3 and 2',
  ],
  [
    () =>
      addon.attentionBackward(
        f(4),
        f(2),
        f(2),
        f(4),
        f(4),
        f(2),
        f(2),
        f(4),
        f(1),
        1,
        1,
        2,
        1,
        2,
        1,
        'float32',
      ),
    'attentionBackward: logSumExp must hold batch * heads * time = 2 elements, got 1',
  ],
  [
    () => addon.swigluForward(f(3), f(3), f(2)),
    'swigluForward: up must hold length of h = 3 elements, got 2',
  ],
  [
    () => addon.swigluForward(f(3), shared.subarray(0, 3), shared.subarray(0, 2)),
    'swigluForward: up must hold length of h = 3 elements, got 2',
  ],
  [
    () => addon.swigluBackward(f(3), f(3), f(4), f(3), f(3)),
    'swigluBackward: dh must hold length of dgate = 3 elements, got 4',
  ],
  [
    () => addon.embeddingForward(f(4), f(6), i32(0, 3), 2, 3, 2),
    'embeddingForward: ids[1] must be in [0, 3), got 3',
  ],
  [
    () => addon.embeddingBackward(f(6), f(4), f(2) as never, 2, 3, 2),
    'embeddingBackward: ids must be an Int32Array, got Float32Array',
  ],
  [
    () => addon.headCrossEntropy(f(2), null, f(6), f(4), f(6), i32(0, 1), 2, 2, 3, 1, 'float32'),
    'headCrossEntropy: dhead must be null when dx is null',
  ],
  [
    () => addon.headCrossEntropy(f(2), null, null, f(4), f(6), i32(0, -2), 2, 2, 3, 1, 'float32'),
    'headCrossEntropy: targets[1] must be in [-1, 3), got -2',
  ],
  [() => addon.sumSquares(null as never), 'sumSquares: arrays must be an Array, got null'],
  [
    () => addon.sumSquares([f(2), new Float64Array(2) as never]),
    'sumSquares: arrays[1] must be a Float32Array, got Float64Array',
  ],
  [
    () => addon.adamWInPlace([f(2)], [f(2)], [f(2)], [f(2)], { ...adamW, beta2: undefined as never }),
    'adamWInPlace: options.beta2 must be a number, got undefined',
  ],
  [
    () => addon.adamWInPlace([f(3), f(2)], [f(3), f(2)], [f(3), f(1)], [f(3), f(2)], adamW),
    'adamWInPlace: secondMoments[1] must hold length of its parameter = 2',
  ],
  [
    () => addon.adamWInPlace([f(3), f(2)], [f(3)], [f(3), f(2)], [f(3), f(2)], adamW),
    'adamWInPlace: firstMoments must hold as many arrays as parameters = 2, got 1',
  ],
  [
    () => addon.adamWInPlace([shared], [f(12)], [f(12)], [shared], adamW),
    'adamWInPlace: parameters[0] must not overlap gradients[0]',
  ],
  [
    () =>
      addon.codedAdamWInPlace(
        [f(257)],
        [new Int8Array(257)],
        [f(1)],
        [new Uint8Array(257)],
        [f(2)],
        [f(257)],
        adamW,
      ),
    'codedAdamWInPlace: firstScales[0] must hold blocks of its parameter = 2 elements, got 1',
  ],
  [
    () => addon.codedAdamWInPlace([f(1)], [f(1) as never], [f(1)], [], [], [], adamW),
    'codedAdamWInPlace: firstCodes[0] must be an Int8Array, got Float32Array',
  ],
  [() => addon.addInPlace(f(2), f(3)), 'addInPlace: x must hold length of accumulator = 2 elements, got 3'],
  [
    () => addon.singularValues(f(3), 2, 2),
    'singularValues: matrix must hold rows * columns = 4 elements, got 3',
  ],
  [() => addon.measurePeak('float32', 0), 'measurePeak: milliseconds must be in (0, 60000]'],
  [
    () => addon.configure({ instructionSet: 'avx1024' as never, threads: 1 }),
    "configure: options.instructionSet 'avx1024' is not offered by this CPU, which has ",
  ],
  [
    () => addon.configure({ instructionSet: 'portable', threads: 0 }),
    'configure: options.threads must be an integer from 1 to 1024, got 0',
  ],
];

describe('a wrong argument is refused before anything is computed', () => {
  it.each(mistakes.map(([call, message]) => ({ call, message })))('$message', ({ call, message }) => {
    expect(call).toThrow(message);
  });

  it('with a class and a code of its own for types and for values', () => {
    expect(() => addon.sumSquares(1 as never)).toThrow(TypeError);
    expect(() => addon.addInPlace(f(2), f(3))).toThrow(RangeError);
    expect(() => addon.addInPlace(f(2), f(3))).toThrow(
      expect.objectContaining({ code: 'ERR_INVALID_ARG_VALUE' }),
    );
  });

  it('and leaves the outputs as they were', () => {
    const y = f(4).fill(7);
    expect(() => addon.embeddingForward(y, f(6), i32(0, 3), 2, 3, 2)).toThrow();
    expect([...y]).toEqual([7, 7, 7, 7]);
  });

  it('is tried on every function that takes arrays', () => {
    const tried = new Set(mistakes.map(([, message]) => message.split(':')[0]));
    const untried = Object.keys(addon).filter((name) => !tried.has(name));
    expect(untried.sort()).toEqual(['allocations', 'describe', 'releaseBase']);
  });
});

describe('the machine', () => {
  it('is described with its sets, best first, and the CPUs this process may use', () => {
    const { instructionSets, threadsMax, cpuModel } = addon.describe();
    expect(instructionSets.at(-1)).toBe('portable');
    expect(threadsMax).toBeGreaterThanOrEqual(1);
    expect(cpuModel).not.toBe('');
  });

  it.runIf(process.platform === 'linux')('counts the CPUs it is pinned to', () => {
    const script = `console.log(require(${JSON.stringify(addonPath())}).describe().threadsMax)`;
    expect(
      execFileSync('taskset', ['-c', '0', process.execPath, '-e', script], { encoding: 'utf8' }).trim(),
    ).toBe('1');
  });

  it('lets a process end at once, whatever its threads are doing', () => {
    const script = `const a = require(${JSON.stringify(addonPath())});
      a.configure({ instructionSet: 'portable', threads: 8 });
      const x = new Float32Array(1 << 20);
      for (let i = 0; i < 20; i++) a.addInPlace(x, new Float32Array(1 << 20));
      a.configure({ instructionSet: 'portable', threads: 3 });
      a.addInPlace(x, new Float32Array(1 << 20));`;
    const { status, signal } = spawnSync(process.execPath, ['-e', script], { timeout: 10_000 });
    expect({ status, signal }).toEqual({ status: 0, signal: null });
  });
});

it('building without a compiler says what to install', () => {
  const script = fileURLToPath(new URL('../../engine/native/build.mjs', import.meta.url));
  const { status, stderr } = spawnSync(process.execPath, [script], {
    env: { ...process.env, CXX: 'no-such-compiler' },
    encoding: 'utf8',
  });
  expect(status).toBe(1);
  expect(stderr).toContain('No C++ compiler found (tried no-such-compiler). Install g++ 11 or newer');
});

function addonPath(): string {
  return fileURLToPath(new URL('../../engine/native/build/relora.node', import.meta.url));
}
