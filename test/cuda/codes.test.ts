import { describe, expect, it } from 'vitest';
import { beginRun, disposeRun } from '@relora/engine';
import { Bench, casesOf } from '@relora/engine/conformance';
import { openCuda } from '@relora/engine/cuda';
import { roundToBfloat16, seededArray } from '../engine/nativeReference.js';
import { licenseDataset, runLoop, temporaryFolders } from '../engine/tinyRun.js';
import { goldenSpec } from '../golden/goldenRun.js';
import { onEverySchedule } from './everySchedule.js';
import { modelOptions } from './modelPaths.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

type ScheduledBench = Parameters<Parameters<typeof onEverySchedule>[0]>[0];

/** Codes that a kernel writes with its rows: they must equal those of a separate pass over the rows. */
function codesOf(
  rows: number,
  columns: number,
  make: (
    bench: ScheduledBench,
    ends: { rows: number; codes: number; scales: number; codes_columns: number },
  ) => number,
): void {
  const width = Math.ceil(columns / 16) * 16;
  const { own, apart } = onEverySchedule((bench) => {
    const room = () => ({ codes: bench.empty(rows * width), scales: bench.empty(4 * rows) });
    const [fused, passed] = [room(), room()];
    const from = make(bench, { rows, ...fused, codes_columns: width });
    bench.launch('quantize', 'quantize_rows', [Math.ceil(rows / 8)], {
      ...{ to: passed.codes, scales: passed.scales, from, rows, columns, to_columns: width, stride: columns },
    });
    const read = ({ codes, scales }: typeof fused) => ({
      codes: bench.readBytes(codes, rows * width),
      scales: bench.readFloats(scales, rows),
    });
    return { own: read(fused), apart: read(passed) };
  }, 'bf16');
  expect(own).toEqual(apart);
  expect(own.codes.some((code) => code !== 0)).toBe(true);
}

/** Rows in bfloat16; the second is all zeros, so its scale is 1. */
const given = (rows: number, columns: number, seed: number) => {
  const values = roundToBfloat16(seededArray(rows * columns, seed, 3));
  if (rows > 1) values.fill(0, columns, 2 * columns);
  return values;
};

describe('codes in e4m3 beside what a kernel makes', () => {
  const sizes = [
    [1, 8],
    [9, 24],
    [10, 264],
    [3, 520],
  ] as const;

  it.each(sizes)('of a norm: %d rows of %d', (rows, dim) => {
    codesOf(rows, dim, (bench, ends) => {
      const y = bench.emptyActivations(rows, dim);
      bench.launch('rms_norm', 'rms_norm_forward', [Math.ceil(rows / 8)], {
        ...{ ...ends, y, rstd: bench.empty(4 * rows), x: bench.floats(given(rows, dim, 1)), kept: 0 },
        ...{ gain: bench.floats(seededArray(dim, 2)), dim, y_stride: dim, epsilon: 1e-5 },
      });
      return y;
    });
  });

  it.each(sizes)('of the gradient behind a norm: %d rows of %d', (rows, dim) => {
    codesOf(rows, dim, (bench, ends) => {
      const rounded = bench.emptyActivations(rows, dim);
      const parameters = {
        ...{ ...ends, rounded, dx: bench.empty(4 * rows * dim), partial: bench.empty(4 * rows * dim) },
        ...{
          dy: bench.activations(given(rows, dim, 3), rows, dim, dim),
          x: bench.floats(given(rows, dim, 4)),
        },
        ...{ residual: bench.floats(given(rows, dim, 5)), gain: bench.floats(seededArray(dim, 6)) },
        ...{
          rstd: bench.floats(seededArray(rows, 7)),
          dim,
          dy_stride: dim,
          rounded_stride: dim,
          slice_rows: 4,
        },
      };
      const grid = [Math.ceil(rows / 4)] as const;
      bench.launch('rms_norm', 'rms_norm_both', grid, parameters, { dynamicSharedBytes: 8 * dim * 4 });
      return rounded;
    });
  });

  it.each(sizes)('of SwiGLU: %d rows of %d', (rows, width) => {
    codesOf(rows, width, (bench, ends) => {
      const h = bench.emptyActivations(rows, width);
      bench.launch('swiglu', 'swiglu_forward_codes', [Math.ceil(rows / 8)], {
        ...{ ...ends, h, gate_up: bench.activations(given(rows, 2 * width, 8), rows, 2 * width, 2 * width) },
        ...{ width, h_stride: width, stride: 2 * width, up_offset: width },
      });
      return h;
    });
  });

  it.each(sizes)('of the gradients of gate and up: %d rows of 2 x %d', (rows, width) => {
    codesOf(rows, 2 * width, (bench, ends) => {
      const made = bench.emptyActivations(rows, 2 * width);
      bench.launch('swiglu', 'swiglu_backward_codes', [Math.ceil(rows / 8)], {
        ...{ ...ends, d_gate_up: made, h: bench.emptyActivations(rows, width) },
        gate_up: bench.activations(given(rows, 2 * width, 9), rows, 2 * width, 2 * width),
        dh: bench.activations(given(rows, width, 10), rows, width, width),
        ...{ width, h_stride: width, stride: 2 * width },
      });
      return made;
    });
  });
});

const open = () => openCuda({ ...modelOptions, precision: 'bfloat16', basePrecision: 'fp8' });

it('a step with a base in FP8 reads again for its codes what the tiles of attention have made, forward and backward, and nothing else', async () => {
  const device = open();
  const { adapter, batch, model } = goldenSpec;
  const spec = { ...goldenSpec, precision: 'fp8Base' } as const;
  const run = await beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
  const passes: number[] = [];
  let before = 0;
  await runLoop(run, (event) => {
    if (event.kind !== 'step') return false;
    const count = device.kernelCounts().get('quantize_rows') ?? 0;
    if (event.phase !== 'fullRank' && adapter !== null) passes.push(count - before);
    before = count;
    return false;
  });
  // Steps after packings and evaluations have more calls.
  const microBatches = batch.sequenceCount / batch.microBatchSequenceCount;
  expect(Math.min(...passes.filter((count) => count > 0))).toBe(2 * model.numHiddenLayers * microBatches);
  disposeRun(run);
  device.close();
}, 300_000);

it('widths that are no multiple of eight have passes for their norms, too', async () => {
  const passes = async (call: string) => {
    const device = open();
    const one = casesOf('larger').find(({ name }) => name === `${call} separate larger`)!;
    await one.run(new Bench(device));
    const count = device.kernelCounts().get('quantize_rows')!;
    device.close();
    return count;
  };
  // Both groups of layers are packed for both directions; the half's gradient is an input.
  const [packings, norm, gradient, tiles] = [4, 1, 1, 2];
  expect(await passes('mlpHalf')).toBe(packings + norm + gradient);
  expect(await passes('attentionHalf')).toBe(packings + norm + gradient + tiles);
});
