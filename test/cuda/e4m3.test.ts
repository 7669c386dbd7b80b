import { describe, expect, it } from 'vitest';
import { beginRun, disposeRun, openDevice, type Device } from '@relora/engine';
import { Bench as HalfBench, casesOf, largestDifference } from '@relora/engine/conformance';
import { openCuda } from '@relora/engine/cuda';
import { openE4m3Cpu } from '../../bench/sides/e4m3Device.mjs';
import { goldenSpec } from '../golden/goldenRun.js';
import { epsilon, excess, roundToBfloat16, seededArray } from '../engine/nativeReference.js';
import {
  interrupted,
  licenseDataset,
  ofKind,
  runLoop,
  temporaryFolders,
  weightsOf,
} from '../engine/tinyRun.js';
import { onEverySchedule } from './everySchedule.js';
import { model } from './modelCard.js';
import { modelOptions } from './modelPaths.js';

/** Every e4m3 value by its code: four exponent bits, three mantissa bits, no infinity. */
const values = Float64Array.from({ length: 256 }, (_, code) => {
  const [exponent, mantissa] = [(code >> 3) & 15, code & 7];
  if ((code & 0x7f) === 0x7f) return NaN;
  const size = exponent === 0 ? mantissa * 2 ** -9 : (8 + mantissa) * 2 ** (exponent - 10);
  return code < 128 ? size : -size;
});

/** Rounds to nearest, ties to even. */
function nearest(value: number): number {
  let best = 0;
  for (let code = 0; code < 127; code++) {
    const [one, other] = [
      Math.abs(values[code]! - Math.abs(value)),
      Math.abs(values[best]! - Math.abs(value)),
    ];
    if (one < other || (one === other && code % 2 === 0)) best = code;
  }
  return value < 0 ? -values[best]! : values[best]!;
}

/** Rows of codes, as float64. */
function quantized(matrix: Float32Array, rows: number, columns: number): Float64Array {
  const rounded = new Float64Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    const of = matrix.subarray(row * columns, (row + 1) * columns);
    const largest = of.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const inverse = largest > 0 ? Math.fround(448 / largest) : 1;
    const scale = largest > 0 ? Math.fround(largest / 448) : 1;
    of.forEach((value, i) => (rounded[row * columns + i] = scale * nearest(Math.fround(value * inverse))));
  }
  return rounded;
}

describe('rows in e4m3', () => {
  it.each([
    [1, 1, 'bf16'],
    [3, 17, 'float'],
    [9, 300, 'bf16'],
    [9, 33, 'float'],
  ] as const)('%d rows of %d %s are rounded to nearest even, with zeros behind', (rows, columns, type) => {
    const given = seededArray(rows * columns, 1, 3);
    if (rows > 3) given.fill(0, columns, 2 * columns); // a row of zeros
    const from = type === 'bf16' ? roundToBfloat16(given) : given;
    const toColumns = Math.ceil(columns / 16) * 16;
    // Rows of parameters need not be aligned.
    const stride = type === 'bf16' ? Math.ceil(columns / 8) * 8 : columns;
    const { codes, scales } = onEverySchedule((bench) => {
      const [to, scalesAt] = [bench.empty(rows * toColumns), bench.empty(4 * rows)];
      bench.launch('quantize', 'quantize_rows', [Math.ceil(rows / 8)], {
        ...{ to, scales: scalesAt, from: bench.activations(from, rows, columns, stride) },
        ...{ rows, columns, to_columns: toColumns, stride },
      });
      return { codes: bench.readBytes(to, rows * toColumns), scales: bench.readFloats(scalesAt, rows) };
    }, type);
    const expected = quantized(from, rows, columns);
    for (let row = 0; row < rows; row++) {
      const own = codes.subarray(row * toColumns, (row + 1) * toColumns);
      const found = [...own.subarray(0, columns)].map((code) => scales[row]! * values[code]!);
      expect(found.map(Math.fround)).toEqual(
        [...expected.subarray(row * columns, (row + 1) * columns)].map(Math.fround),
      );
      expect(own.subarray(columns).every((code) => code === 0)).toBe(true);
    }
  });

  it('are transposed in tiles', () => {
    const [rows, columns] = [35, 67];
    const from = seededArray(rows * columns, 2);
    const to = onEverySchedule((bench) => {
      const at = bench.empty(4 * rows * columns);
      bench.launch('quantize', 'transpose', [3, 2], {
        to: at,
        from: bench.floats(from),
        rows,
        columns,
        stride: columns,
      });
      return bench.readFloats(at, rows * columns);
    }, 'float');
    expect(to).toEqual(Float32Array.from(to, (_, i) => from[(i % rows) * columns + Math.floor(i / rows)]!));
  });

  it.each([
    [1, 1, 16],
    [17, 130, 48],
    [129, 9, 160],
  ])('are multiplied: %d x %d over %d', (m, n, k) => {
    // Codes of moderate size, so that sums are exact in float32.
    const codesOf = (length: number, seed: number) =>
      Uint8Array.from(
        seededArray(length, seed),
        (value) => Math.floor(Math.abs(value) * 72) | (value < 0 ? 128 : 0),
      );
    const [a, b] = [codesOf(m * k, 3), codesOf(n * k, 4)];
    const [rowScales, columnScales] = [seededArray(m, 5), seededArray(n, 6)];
    const addend = seededArray(m * n, 7);
    const found = onEverySchedule((bench) => {
      const to = bench.empty(4 * m * n);
      bench.launch(
        'product_e4m3',
        'product_e4m3',
        [Math.ceil(n / 128), Math.ceil(m / 128)],
        {
          ...{ c_bf16: 0, c_float: to, a: bench.bytes(a), b: bench.bytes(b) },
          ...{ row_scales: bench.floats(rowScales), column_scales: bench.floats(columnScales) },
          ...{ addend: bench.floats(addend), addend_stride: n, m, n, k, c_stride: n },
        },
        { dynamicSharedBytes: 3 * 2 * (128 * 40 + 128 * 40) },
      );
      return bench.readFloats(to, m * n);
    });
    const expected = Float64Array.from({ length: m * n }, (_, at) => {
      const [row, column] = [Math.floor(at / n), at % n];
      let sum = 0;
      for (let i = 0; i < k; i++) sum += values[a[row * k + i]!]! * values[b[column * k + i]!]!;
      return sum * rowScales[row]! * columnScales[column]! + addend[at]!;
    });
    const most = Math.max(...values.filter((value) => !Number.isNaN(value)).slice(0, 80));
    expect(excess(found, expected, () => k * epsilon * (most * most + 1))).toBeLessThanOrEqual(0);
  });
});

const sides = [
  { name: 'cuBLASLt', libraries: modelOptions.libraries },
  { name: 'kernels of our own', libraries: { ...modelOptions.libraries, products: [] } },
];
const open = (libraries = modelOptions.libraries) =>
  openCuda({ ...modelOptions, libraries, precision: 'bfloat16', basePrecision: 'fp8' });

describe.each(sides)('a base in FP8 by $name', ({ name, libraries }) => {
  const wanted = [
    'separate',
    'separate, made again',
    'separate, B alone',
    'separate, biased',
    'frozen, its gradient looked at',
  ];
  const cases = casesOf('larger').filter((one) =>
    wanted.some((variant) => one.name.endsWith(`Half ${variant} larger`)),
  );

  it.each(cases)('$name is near its definition', async (one) => {
    const definitions = await one.run(
      new HalfBench(await openDevice({ device: 'reference', precision: 'float32' })),
    );
    const device = open(libraries);
    const found = await one.run(new HalfBench(device));
    // Operands keep four significant bits, so the error of a sum of n terms is a sixteenth of it over sqrt(n), plus the same fraction of
    // its largest terms.
    for (const [result, of] of found)
      if (of.length > 1) expect(largestDifference(of, definitions.get(result)!), result).toBeLessThan(0.12);
    expect(device.memory()).toEqual({ count: 0, bytes: 0 });
    const isJoined = !one.name.includes('biased') || one.call === 'mlpHalf';
    const kernel = name === 'cuBLASLt' ? 'cublaslt_e4m3' : 'product_e4m3';
    expect(device.kernelCounts().has(kernel)).toBe(isJoined);
    device.close();
  });
});

describe('the device that bench/fp8Band.mjs trains on without a card', () => {
  const wanted = ['separate', 'separate, B alone', 'frozen, its gradient looked at'];
  const cases = casesOf('larger').filter((one) =>
    wanted.some((variant) => one.name.endsWith(`Half ${variant} larger`)),
  );

  it.each(cases)('$name has the codes and scales of the card', async (one) => {
    const reference = await openDevice({ device: 'reference', precision: 'float32' });
    const definitions = await one.run(new HalfBench(reference));
    const card = await one.run(new HalfBench(open()));
    const found = await one.run(new HalfBench(openE4m3Cpu({ threads: 1 })));
    for (const [result, of] of found) {
      if (of.length === 1) continue;
      // Some values are so close to the middle between two codes that earlier rounding decides; the error of codes is several times as
      // large.
      const apart = largestDifference(of, card.get(result)!);
      expect(apart, result).toBeLessThan(0.05);
      expect(apart, result).toBeLessThan(0.7 * largestDifference(of, definitions.get(result)!));
    }
  });
});

describe('a run with a base in FP8', () => {
  const newFolder = temporaryFolders();
  const dataset = licenseDataset(newFolder);
  const begin =
    (device: Device) =>
    async (spec: typeof goldenSpec, options = {}) =>
      beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1, ...options });
  const spec = { ...goldenSpec, precision: 'fp8Base' } as const;

  it('learns as the definitions do, proves its merges, and has the same bits again, resumed', async () => {
    const reference = await openDevice({ device: 'reference', precision: 'float32' });
    const lossesOf = async (device: Device, of: typeof goldenSpec) => {
      const run = await begin(device)(of);
      const events = await runLoop(run);
      return {
        run,
        losses: ofKind(events, 'step').map(({ loss }) => loss),
        restarts: ofKind(events, 'restart'),
      };
    };
    const wanted = await lossesOf(reference, goldenSpec);
    const whole = await lossesOf(open(), spec);
    expect(whole.losses).toHaveLength(wanted.losses.length);
    whole.losses.forEach((loss, step) => expect(Math.abs(loss - wanted.losses[step]!)).toBeLessThan(0.05));
    expect(whole.restarts.length).toBeGreaterThan(1);
    for (const { deltaNorm, logitChangeMax, logitChangeTolerance } of whole.restarts) {
      expect(deltaNorm).toBeGreaterThan(0);
      expect(logitChangeMax).toBeLessThan(logitChangeTolerance);
    }
    const resumed = await interrupted(begin(open()), spec, 15);
    expect(await weightsOf(resumed.run)).toEqual(await weightsOf(whole.run));
    [wanted.run, whole.run, resumed.run].forEach(disposeRun);
  });

  it('is refused where a card has no products of e4m3', () => {
    model.setCard({ capability: 86 });
    try {
      expect(() => open()).toThrow(/compute capability 8.6, a base in FP8 needs 8.9.*train in BFLOAT16/);
    } finally {
      model.setCard({ capability: 90 });
    }
    expect(() => openCuda({ ...modelOptions, precision: 'float32', basePrecision: 'fp8' })).toThrow(
      /bfloat16/,
    );
  });
});
