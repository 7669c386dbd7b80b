// Bits of native operations on fixed inputs: node operations.mjs ADDON prints as JSON the addon's description, and a digest of each
// operation for every instruction set, emulated ones included, that it can use.
import { createHash } from 'node:crypto';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const models = ['neonBf16-model'];
const adamw = {
  ...{ learningRate: 1e-3, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1 },
  ...{ correction1: 0.19, correction2: 0.0975, gradientScale: 0.5 },
};

/** @returns {{ cpuModel: string, offered: string[], digests: Record<string, Record<string, string>>, refused: string }} */
export function operate(addonPath) {
  const addon = createRequire(import.meta.url)(addonPath);
  const { instructionSets: offered, cpuModel } = addon.describe();
  const digests = Object.fromEntries([...offered, ...models].map((set) => [set, digestsOf(addon, set)]));
  let refused = '';
  try {
    addon.configure({ instructionSet: 'neonBf17', threads: 1 });
  } catch (error) {
    refused = error.message;
  }
  return { cpuModel, offered, digests, refused };
}

function digestsOf(addon, instructionSet) {
  addon.configure({ instructionSet, threads: 2 });
  const random = generator();
  const digests = {};
  const keep = (name, ...arrays) => {
    const hash = createHash('sha256');
    for (const array of arrays) hash.update(Buffer.from(array.buffer, array.byteOffset, array.byteLength));
    digests[name] = hash.digest('hex').slice(0, 16);
  };
  for (const precision of ['float32', 'bfloat16'])
    for (const transposeA of [false, true]) {
      const [m, n, k] = [50, 71, 1301];
      const c = new Float32Array(m * n);
      const shape = { batch: 1, m, n, k, transposeA, transposeB: !transposeA };
      addon.matmul(c, random(m * k), random(k * n), shape, precision);
      keep(`${precision} product${transposeA ? ' transposed' : ''}`, c);
    }
  for (const precision of ['int8', 'nf4']) {
    const [rows, inFeatures, out] = [37, 1156, 83];
    const base = addon.packBase(random(inFeatures * out, 0.1), inFeatures, out, precision);
    const [y, dx] = [new Float32Array(rows * out), new Float32Array(rows * inFeatures)];
    addon.linearForward(y, null, random(rows * inFeatures), { base, adapter: null }, rows);
    addon.linearBackward(dx, null, null, random(rows * out), null, null, { base, adapter: null }, rows);
    keep(`${precision} base`, y, dx);
  }
  {
    const [rows, hidden, vocabulary] = [33, 48, 301];
    const [losses, dx, dhead] = [rows, rows * hidden, vocabulary * hidden].map(
      (size) => new Float32Array(size),
    );
    const targets = Int32Array.from({ length: rows }, (_, row) =>
      row % 7 === 3 ? -1 : (row * 37) % vocabulary,
    );
    const shape = { rows, hidden, vocabulary, gradientScale: 0.1, inInt8: false };
    addon.headCrossEntropy(
      losses,
      dx,
      dhead,
      random(rows * hidden),
      random(vocabulary * hidden),
      targets,
      shape,
      'float32',
    );
    keep('head and loss', losses, dx, dhead);
  }
  {
    const count = 1000;
    const parameter = random(count);
    const [first, second] = [new Int8Array(count), new Uint8Array(count)];
    const [firstScales, secondScales] = [new Float32Array(4), new Float32Array(4)];
    for (let step = 0; step < 3; step++)
      addon.codedAdamWInPlace(
        [parameter],
        [first],
        [firstScales],
        [second],
        [secondScales],
        [random(count)],
        adamw,
      );
    keep('AdamW with 8-bit moments', parameter, first, firstScales, second, secondScales);
    const moments = [random(count, 0.01), random(count, 0.01).map((value) => value * value)];
    addon.adamWInPlace([parameter], [moments[0]], [moments[1]], [random(count)], adamw);
    const [gate, up, h] = [random(500, 8), random(500), new Float32Array(500)];
    addon.swigluForward(h, gate, up);
    keep('AdamW and SwiGLU', parameter, ...moments, h);
  }
  return digests;
}

function generator() {
  let state = 1;
  const uniform = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  return (length, scale = 1) =>
    Float32Array.from({ length }, () => (uniform() + uniform() + uniform() - 1.5) * scale);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href)
  console.log(JSON.stringify(operate(process.argv[2])));
