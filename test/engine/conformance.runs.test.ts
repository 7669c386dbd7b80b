import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  openDevice,
  type Device,
  type DeviceOptions,
  type RunSpec,
  type TrainingRun,
} from '@relora/engine';
import { openCuda } from '@relora/engine/cuda';
import { isTensorflowSetUp } from '../../engine/dist/device/tfjs/tensorflow.js';
import { modelOptions } from '../cuda/modelPaths.js';
import { goldenSpec } from '../golden/goldenRun.js';
import {
  interrupted,
  licenseDataset,
  ofKind,
  runLoop,
  temporaryFolders,
  tinySpec,
  reported,
  weightsOf,
} from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

/** Requirements on every device for whole runs, in addition to those on its calls (conformance/). */
const cpu = (options: DeviceOptions) => () => openDevice(options);
const card = (precision: 'float32' | 'bfloat16') => () =>
  Promise.resolve(openCuda({ ...modelOptions, isApart: false, precision }));
/** ThreadSanitizer knows threads, but not the fibers of the model: its process died in a whole run on them. */
const isOfThreads = process.env.TEST_SANITIZER === 'thread';
const devices: { name: string; open: () => Promise<Device>; tolerance: number; isMissing?: boolean }[] = [
  { name: 'native', open: cpu({ device: 'native', precision: 'float32', threads: 2 }), tolerance: 1e-5 },
  {
    name: 'native, portable',
    open: cpu({ device: 'native', precision: 'float32', instructionSet: 'portable' }),
    tolerance: 1e-5,
  },
  { name: 'cuda on its model', open: card('float32'), tolerance: 1e-5, isMissing: isOfThreads },
  // Operands of products keep 8 significant bits.
  { name: 'cuda on its model, bfloat16', open: card('bfloat16'), tolerance: 0.02, isMissing: isOfThreads },
  { name: 'reference', open: cpu({ device: 'reference', precision: 'float32' }), tolerance: 1e-30 },
  {
    name: 'tensorflow',
    open: cpu({ device: 'tensorflow', precision: 'float32' }),
    tolerance: 1e-5,
    isMissing: !isTensorflowSetUp(),
  },
];

const begin =
  (device: Device) =>
  async (spec: RunSpec, options = {}): Promise<TrainingRun> =>
    beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1, ...options });

async function lossesOf(device: Device, spec: RunSpec): Promise<number[]> {
  const run = await begin(device)(spec);
  const steps = ofKind(await runLoop(run), 'step');
  disposeRun(run);
  return steps.map(({ loss }) => loss);
}

/** Losses by the definitions, which are computed once for all devices. */
let goldenLosses: Promise<number[]> | undefined;
const wantedLosses = (): Promise<number[]> =>
  (goldenLosses ??= openDevice({ device: 'reference', precision: 'float32' }).then((device) =>
    lossesOf(device, goldenSpec),
  ));

const resumedSpecs: [name: string, spec: RunSpec][] = [
  ['with dropout', tinySpec({ adapter: { dropout: 0.1 }, batch: { microBatchSequenceCount: 2 } })],
  [
    'by Muon, then LoRA-Muon, and APOLLO-Mini between cycles',
    tinySpec({
      warmStart: { optimizer: 'muon' },
      adapter: { adapterOptimizer: 'loraMuon', fullRankStepCount: 2, fullRankOptimizer: 'apolloMini' },
    }),
  ],
];

/** The model of a card is a hundred times slower than a card. */
const patienceMs = 300_000;

for (const { name, open, tolerance, isMissing = false } of devices)
  describe.skipIf(isMissing)(`a run on ${name}`, () => {
    it(
      'has the losses of the definitions, over two merges',
      async () => {
        const wanted = await wantedLosses();
        const found = await lossesOf(await open(), goldenSpec);
        expect(found).toHaveLength(wanted.length);
        expect(Math.max(...found.map((loss, step) => Math.abs(loss - wanted[step]!)))).toBeLessThanOrEqual(
          tolerance,
        );
      },
      patienceMs,
    );

    it.each(resumedSpecs)(
      'has the same bits again, and when it is resumed within a cycle: %s',
      async (_name, spec) => {
        const device = await open();
        const whole = await begin(device)(spec);
        const events = await runLoop(whole);
        const resumed = await interrupted(begin(await open()), spec, 9);
        expect(reported(resumed.events)).toEqual(reported(events));
        expect(await weightsOf(resumed.run)).toEqual(await weightsOf(whole));
        [whole, resumed.run].forEach(disposeRun);
      },
      patienceMs,
    );

    it(
      'proves its merges, and holds the same memory after fifty steps as after ten',
      async () => {
        const device = await open();
        const run = await begin(device)(
          tinySpec({
            model: { hiddenSize: 16, intermediateSize: 24, numHiddenLayers: 1 },
            warmStart: { stepCount: 0 },
            adapter: { cycleStepCount: 10 },
            stepCount: 50,
            batch: { microBatchSequenceCount: 1 },
          }),
        );
        const counts = new Map<number, number>();
        const events = await runLoop(run, (event) => {
          if (event.kind === 'step') counts.set(event.step, device.memory().count);
          return false;
        });
        expect(counts.get(49)).toBe(counts.get(19));
        const restarts = ofKind(events, 'restart');
        expect(restarts).toHaveLength(4);
        for (const { deltaNorm, logitChangeMax, logitChangeTolerance } of restarts) {
          expect(deltaNorm).toBeGreaterThan(0);
          expect(logitChangeMax).toBeLessThan(logitChangeTolerance);
        }
        disposeRun(run);
        device.close();
      },
      patienceMs,
    );
  });
