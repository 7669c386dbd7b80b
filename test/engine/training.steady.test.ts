import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect, it } from 'vitest';
import { beginRun, disposeRun, openDevice } from '@relora/engine';
import type { CpuDevice } from '../../engine/dist/device/cpu/cpuDevice.js';
import { licenseDataset, ofKind, runLoop, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

// Enabled here, because the measurement needs unreachable objects to be freed.
setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

const mebibyte = 2 ** 20;

it('holds the same memory after 1000 steps as after 100, with restarts, evaluations, samples and checkpoints', async () => {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  const addon = (device as CpuDevice).addon;
  const run = await beginRun({
    spec: tinySpec({
      model: { hiddenSize: 16, intermediateSize: 24, numHiddenLayers: 1, maxPositionEmbeddings: 16 },
      warmStart: { stepCount: 20 },
      adapter: { cycleStepCount: 20 },
      stepCount: 1000,
      batch: { sequenceLength: 16, sequenceCount: 2, microBatchSequenceCount: 1 },
      evaluation: { everyStepCount: 20, tokenCount: 64, finalTokenCount: 64 },
      checkpoint: { everyStepCount: 50 },
      sample: { everyStepCount: 50 },
    }),
    device,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
  });
  const held: ReturnType<typeof look>[] = [];
  const look = () => {
    // Arrays are freed concurrently; a second collection waits for the first one's.
    for (let times = 0; times < 3; times++) collectGarbage();
    const { rss, arrayBuffers } = process.memoryUsage();
    return { held: device.memory(), native: addon.allocations(), rss, arrayBuffers };
  };
  const events = await runLoop(run, (event) => {
    // Both at the same position within a cycle.
    if (event.kind === 'step' && [99, 999].includes(event.step)) held.push(look());
    return false;
  });
  expect(ofKind(events, 'restart').length).toBeGreaterThan(45);
  expect(ofKind(events, 'checkpoint').length).toBeGreaterThan(18);

  const [early, late] = held as [ReturnType<typeof look>, ReturnType<typeof look>];
  const counts = ({ held, native }: typeof early) => ({ held, native });
  expect(counts(late)).toEqual(counts(early));
  expect(early.native.count).toBeGreaterThan(0);
  // Leaking the smallest activation, [16, 16] floats for each of two micro-batches, in every step would give 1.8 MiB.
  expect(late.arrayBuffers - early.arrayBuffers).toBeLessThan(mebibyte);
  // Allocators and the JavaScript compiler keep memory that they once had: a few MiB, independent of the number of steps.
  expect(late.rss - early.rss).toBeLessThan(32 * mebibyte);

  disposeRun(run);
  expect(device.memory()).toEqual(addon.allocations()); // only scratch memory of kernels is left
});

it('gives packed bases and scratch memory back', async () => {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 1 });
  const native = (device as CpuDevice).addon;
  const { instructionSets } = native.describe();
  native.configure({ instructionSet: instructionSets[0]!, threads: 1 });
  const before = native.allocations();
  const base = native.packBase(new Float32Array(64 * 64), 64, 64, 'float32');
  expect(native.allocations().bytes).toBeGreaterThanOrEqual(before.bytes + 2 * 4 * 64 * 64);
  native.releaseBase(base);
  expect(native.allocations()).toEqual(before);
  const square = () => new Float32Array(300 * 300);
  native.matmul(
    square(),
    square(),
    square(),
    { batch: 1, m: 300, n: 300, k: 300, transposeA: false, transposeB: false },
    'float32',
  );
  expect(native.allocations().bytes).toBeGreaterThan(before.bytes);
  native.configure({ instructionSet: instructionSets[0]!, threads: 1 });
  expect(native.allocations()).toEqual(before);
});
