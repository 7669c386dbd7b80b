import type { AdamWOptions, LayerAdapter, Moment } from '../device/device.js';
import { encode, zeroSigned, zeroUnsigned } from '../device/momentCodes.js';
import { seeded } from './seeded.js';
import type { Bench } from './bench.js';
import { attentionCase, attentionVariants, mlpCase, modeCases, variants } from './halfCases.js';

/** One call of a device, or a forward call with its backward call, at one set of shapes. */
export interface Case {
  /** Row of the table. */
  call: string;
  name: string;
  /** Variants of the computation for which a device may have separate kernels (devices.ts). */
  ways: string[];
  /** Whether it is computed in float32 whatever the device's precision. */
  isExact?: boolean;
  /** Everything that the calls wrote, by name. */
  run(bench: Bench): Promise<Map<string, Float32Array>>;
}

type Size = 'small' | 'larger';

export function casesOf(size: Size): Case[] {
  return [
    embeddingCase(size, false),
    embeddingCase(size, true),
    rmsNormCase(size, false),
    rmsNormCase(size, true),
    ...variants.flatMap((variant) => [attentionCase(size, variant), mlpCase(size, variant)]),
    ...attentionVariants.map((variant) => attentionCase(size, variant)),
    ...modeCases(size),
    headCase(size),
    logitsCase(size, 'run'),
    logitsCase(size, 'float32'),
    layerCase(size),
    matmulCase(size),
  ];
}

/** Halves in the sizes of a preset, for devices that compute them within seconds. */
export function wideCases(): Case[] {
  const wanted = ['trained', 'separate', 'merged', 'weightGradient'];
  return (['preset', 'long'] as const).flatMap((size) =>
    variants
      .filter(({ name }) => wanted.includes(name))
      .flatMap((variant) => [attentionCase(size, variant), mlpCase(size, variant)]),
  );
}

/** Calls whose results have no gradient. */
export const updateCases: Case[] = [
  adamWCase('float32'),
  adamWCase('coded'),
  clippedCase(Infinity),
  clippedCase(NaN),
  sumsCase(),
  mergeCase(true),
  mergeCase(false),
  repackCase(),
  singularCase(),
];

function embeddingCase(size: Size, adds: boolean): Case {
  const shape =
    size === 'small' ? { rows: 5, vocabulary: 6, hidden: 3 } : { rows: 40, vocabulary: 90, hidden: 17 };
  const ids = Int32Array.from({ length: shape.rows }, (_, i) => (i * i * 7 + 3) % shape.vocabulary);
  return {
    call: 'embedding',
    name: `embedding${adds ? ' whose gradient is added' : ''} ${size}`,
    ways: [],
    run(bench) {
      const { device } = bench;
      const table = bench.input('table', shape.vocabulary * shape.hidden);
      const dtable = adds
        ? bench.changes('dtable', bench.input('before', table.length))
        : bench.output('dtable', table.length);
      device.embeddingForward(bench.outputStream('y', shape.rows * shape.hidden), table, ids, shape);
      device.embeddingBackward(dtable, bench.stream('dy', shape.rows * shape.hidden), ids, shape, adds);
      return bench.results({});
    },
  };
}

function rmsNormCase(size: Size, isMadeAgain: boolean): Case {
  const shape = { rows: size === 'small' ? 3 : 17, hidden: size === 'small' ? 5 : 129, epsilon: 1e-6 };
  const length = shape.rows * shape.hidden;
  return {
    call: 'rmsNorm',
    name: `rmsNorm${isMadeAgain ? ', made again' : ''} ${size}`,
    ways: [],
    run(bench) {
      const { device } = bench;
      const [x, gain] = [bench.stream('x', length), bench.input('gain', shape.hidden)];
      const y = bench.outputStream('y', length);
      const state = device.rmsNormForward(y, x, gain, shape, { keepsState: !isMadeAgain });
      const gradients = { dx: bench.outputStream('dx', length), gain: bench.output('dgain', shape.hidden) };
      device.rmsNormBackward(gradients, bench.stream('dy', length), x, gain, state, shape);
      return bench.results({});
    },
  };
}

const headShapes = {
  small: { rows: 5, vocabulary: 7, hidden: 3 },
  larger: { rows: 70, vocabulary: 301, hidden: 33 },
};

function headCase(size: Size): Case {
  const shape = headShapes[size];
  const targets = Int32Array.from({ length: shape.rows }, (_, i) =>
    i % 4 === 2 ? -1 : (i * 5 + 1) % shape.vocabulary,
  );
  return {
    call: 'headCrossEntropy',
    name: `headCrossEntropy ${size}`,
    ways: [],
    async run(bench) {
      const { device } = bench;
      const x = bench.stream('x', shape.rows * shape.hidden);
      const head = bench.input('head', shape.vocabulary * shape.hidden, 0.5);
      const result = device.newResult(2 * shape.rows);
      device.clearResult(result);
      const pass = { shape, x, head, targets, scale: 0.25, firstRow: 0, precision: 'same' as const };
      const gradients = {
        dx: bench.outputStream('dx', x.length),
        head: bench.output('dhead', head.length),
      };
      device.headCrossEntropy(result, gradients, pass);
      device.headCrossEntropy(result, null, { ...pass, scale: 0.5, firstRow: shape.rows });
      const { loss, lossSum, rowLosses } = await device.readResult(result);
      device.releaseResult(result);
      return await bench.results({ loss: [loss], lossSum: [lossSum], rowLosses });
    },
  };
}

function logitsCase(size: Size, precision: 'run' | 'float32'): Case {
  const shape = headShapes[size];
  return {
    call: 'headLogits',
    name: `headLogits, ${precision} ${size}`,
    ways: [],
    isExact: precision === 'float32',
    run(bench) {
      const x = bench.stream('x', shape.rows * shape.hidden);
      const head = bench.input('head', shape.vocabulary * shape.hidden);
      const logits = bench.output('logits', (shape.rows - 2) * shape.vocabulary);
      bench.device.headLogits(logits, { shape, x, head, firstRow: 2 }, precision);
      return bench.results({});
    },
  };
}

function layerCase(size: Size): Case {
  const [rows, inFeatures, outFeatures, rank] = size === 'small' ? [3, 5, 4, 2] : [9, 65, 63, 17];
  return {
    call: 'layerForward',
    name: `layerForward ${size}`,
    ways: [],
    isExact: true,
    async run(bench) {
      const weight = bench.input('weight', inFeatures * outFeatures, 1 / Math.sqrt(inFeatures));
      const base = bench.device.packBase(weight, inFeatures, outFeatures);
      const adapter = adapterOf(bench, inFeatures, outFeatures, rank);
      // Packed with the adapter merged in, which a probe must not count twice.
      bench.device.packMerged(base, weight, adapter);
      const layer = { name: 'layer', index: 0, inFeatures, outFeatures, weight, base, adapter, bias: null };
      const x = bench.input('x', rows * inFeatures);
      bench.device.layerForward(bench.output('y', rows * outFeatures), x, rows, layer);
      const results = await bench.results({});
      bench.device.releaseBase(base);
      return results;
    },
  };
}

function adapterOf(
  bench: Bench,
  inFeatures: number,
  outFeatures: number,
  rank: number,
  scale = 0.75,
): LayerAdapter {
  const a = bench.input('a', inFeatures * rank, 1 / Math.sqrt(inFeatures));
  const b = bench.input('b', rank * outFeatures, 1 / Math.sqrt(rank));
  return { rank, a, b, scale, graph: 'merged', dropout: null };
}

function matmulCase(size: Size): Case {
  const [m, n, k] = size === 'small' ? [3, 4, 5] : [33, 47, 65];
  return {
    call: 'matmul',
    name: `matmul ${size}`,
    ways: [],
    isExact: true,
    run(bench) {
      for (const transposeA of [false, true])
        for (const transposeB of [false, true]) {
          const name = `${transposeA} ${transposeB}`;
          const [a, b] = [bench.input(`a ${name}`, m * k), bench.input(`b ${name}`, k * n)];
          bench.device.matmul(bench.output(`c ${name}`, m * n), a, b, { m, n, k, transposeA, transposeB });
        }
      return bench.results({});
    },
  };
}

const adamWOptions: Omit<AdamWOptions, 'clip'> = {
  learningRate: 0.01,
  beta1: 0.9,
  beta2: 0.99,
  epsilon: 1e-8,
  weightDecay: 0.1,
  correction1: 1 - 0.9 ** 3,
  correction2: 1 - 0.99 ** 3,
};

/** Two parameters, of which one already has moments; gradients are clipped to a third of their norm. */
function adamWCase(kind: 'float32' | 'coded'): Case {
  const shape = [37, 19];
  const length = 37 * 19;
  return {
    call: 'adamW',
    name: `adamW with moments in ${kind === 'coded' ? 'eight bits' : 'float32'}`,
    ways: [kind],
    async run(bench) {
      const { device } = bench;
      const result = device.newResult(0);
      device.clearResult(result);
      const members = ['one', 'other'].map((name) => ({
        parameter: bench.changes(name, bench.input(name, length)),
        gradient: bench.input(`${name} gradient`, length),
        first: momentOf(bench, `${name} first`, seeded(length, `${name} first`, 0.1), kind, 'int8'),
        second: momentOf(
          bench,
          `${name} second`,
          seeded(length, `${name} second`, 0.1).map((value) => value * value),
          kind,
          'uint8',
        ),
      }));
      device.sumSquares(
        result,
        members.map(({ gradient }) => gradient),
      );
      const normMax = Math.sqrt((await device.readResult(result)).squaredNorm) / 3;
      device.adamW({ shape, members }, { ...adamWOptions, clip: { result, normMax } });
      device.releaseResult(result);
      return await bench.results({});
    },
  };
}

function momentOf(
  bench: Bench,
  name: string,
  values: Float32Array,
  kind: 'float32' | 'coded',
  type: 'int8' | 'uint8',
): Moment {
  if (kind === 'float32') return bench.changes(name, bench.given(name, values));
  const coded = type === 'int8' ? zeroSigned(values.length) : zeroUnsigned(values.length);
  encode(coded, values);
  const codes = bench.hold(bench.device.alloc(values.length, type));
  bench.device.upload(codes, coded.codes);
  return {
    codes: bench.changes(`${name} codes`, codes),
    scales: bench.changes(`${name} scales`, bench.given(`${name} scales`, coded.scales)),
  };
}

/** With a gradient that is not finite nothing changes; without a limit nothing is clipped. */
function clippedCase(poison: number): Case {
  return {
    call: 'adamW',
    name: Number.isNaN(poison) ? 'adamW beside a gradient that is not finite' : 'adamW without a bound',
    ways: [Number.isNaN(poison) ? 'nothing' : 'float32'],
    async run(bench) {
      const { device } = bench;
      const gradient = seeded(50, 'gradient');
      if (Number.isNaN(poison)) gradient[7] = NaN;
      const result = device.newResult(0);
      device.clearResult(result);
      const member = {
        parameter: bench.changes('parameter', bench.input('parameter', 50)),
        gradient: bench.given('gradient', gradient),
        first: bench.changes('first', bench.given('first', new Float32Array(50))),
        second: bench.changes('second', bench.given('second', new Float32Array(50))),
      };
      device.sumSquares(result, [member.gradient]);
      const clip = { result, normMax: Infinity };
      device.adamW({ shape: [50], members: [member] }, { ...adamWOptions, clip });
      device.releaseResult(result);
      return await bench.results({});
    },
  };
}

function sumsCase(): Case {
  return {
    call: 'sums in place',
    name: 'sums and squares of an allocation in parts',
    ways: [],
    async run(bench) {
      const { device } = bench;
      const { whole, parts } = device.allocTogether([7, 0, 1000]);
      parts.forEach((part, index) => device.upload(part, seeded(part.length, `part ${index}`)));
      const result = device.newResult(0);
      device.clearResult(result);
      device.sumSquares(result, parts);
      device.sumSquares(result, [whole]); // includes the zeros between the parts
      const other = bench.input('other', whole.length);
      device.addInPlace(whole, other);
      device.scaleInPlace(whole, 0.5);
      const { squaredNorm } = await device.readResult(result);
      const values = await Promise.all(parts.map((part) => device.download(part)));
      device.releaseResult(result);
      device.release(whole);
      return await bench.results({ squaredNorm: [squaredNorm], first: values[0]!, last: values[2]! });
    },
  };
}

function mergeCase(isFinite: boolean): Case {
  const shape = { inFeatures: 35, outFeatures: 41 };
  const length = shape.inFeatures * shape.outFeatures;
  return {
    call: 'mergeAdapter',
    name: `mergeAdapter ${isFinite ? 'beside the weight and into it' : 'that is not finite'}`,
    ways: [],
    isExact: true,
    async run(bench) {
      const { device } = bench;
      const weight = bench.changes('weight', bench.input('weight', length));
      const adapter = adapterOf(bench, shape.inFeatures, shape.outFeatures, 5, isFinite ? 0.25 : 1e38);
      if (!isFinite) device.upload(adapter.a, new Float32Array(adapter.a.length).fill(1e30));
      const looked = await device.mergeAdapter(null, weight, adapter, shape);
      const found = [Number(looked.finite), isFinite ? looked.deltaNorm : 0];
      if (isFinite) {
        const beside = bench.output('beside', length);
        await device.mergeAdapter(beside, weight, adapter, shape);
      }
      const into = await device.mergeAdapter(weight, weight, adapter, shape);
      return await bench.results({ found, into: [Number(into.finite)] });
    },
  };
}

/** After repacking, parking and packing again, products match the current weight. */
function repackCase(): Case {
  const [inFeatures, outFeatures, rows] = [24, 40, 9];
  return {
    call: 'frozen base',
    name: 'a frozen base that is packed again and parked',
    ways: ['pack'],
    async run(bench) {
      const { device } = bench;
      const weight = bench.input('first', inFeatures * outFeatures, 0.2);
      const base = device.packBase(weight, inFeatures, outFeatures);
      device.upload(weight, seeded(inFeatures * outFeatures, 'second', 0.2));
      device.park(weight, null);
      device.repackBase(base, weight);
      const shape = { batch: 1, time: rows, hidden: inFeatures, intermediate: outFeatures };
      const layer = (name: string, from: number, to: number) => ({
        name,
        index: 0,
        inFeatures: from,
        outFeatures: to,
        weight: bench.input(name, from * to, 0.2),
        base: null,
        adapter: null,
        bias: null,
      });
      const half = {
        shape,
        gain: bench.input('gain', inFeatures),
        epsilon: 1e-6,
        gate: { ...layer('gate', inFeatures, outFeatures), weight, base },
        up: layer('up', inFeatures, outFeatures),
        down: layer('down', outFeatures, inFeatures),
      };
      const mode = { keepsState: false, precision: 'run', cache: null } as const;
      const x = bench.stream('x', rows * inFeatures);
      device.mlpHalfForward(bench.outputStream('y', rows * inFeatures), x, half, mode);
      const results = await bench.results({});
      device.releaseBase(base);
      return results;
    },
  };
}

function singularCase(): Case {
  return {
    call: 'singularValues',
    name: 'singularValues',
    ways: [],
    isExact: true,
    async run(bench) {
      const values = await bench.device.singularValues(seeded(20 * 33, 'matrix'), 20, 33);
      return await bench.results({ values });
    },
  };
}
