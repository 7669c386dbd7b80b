import { afterEach, describe, expect, it } from 'vitest';
import { beginRun, disposeRun, type RunSpec } from '@relora/engine';
import { openCuda } from '@relora/engine/cuda';
import { DeviceFault } from '../../engine/dist/device/deviceFaults.js';
import { goldenSpec } from '../golden/goldenRun.js';
import {
  endedByLetters,
  licenseDataset,
  ofKind,
  runLoop,
  temporaryFolders,
  weightsOf,
} from '../engine/tinyRun.js';
import { modelOptions } from './modelPaths.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
const opened: ReturnType<typeof openCuda>[] = [];

afterEach(() => {
  for (const device of opened.splice(0)) device.close();
});

/** A card that records which graphs were created, run and released. */
function openWatched() {
  const device = openCuda({ ...modelOptions, isApart: false, precision: 'bfloat16' });
  opened.push(device);
  const graphs = { made: 0, run: 0, released: 0 };
  const { endCapture, runGraph, releaseGraph } = device.card;
  Object.assign(device.card, {
    endCapture: () => (graphs.made++, endCapture()),
    runGraph: (graph: number) => (graphs.run++, runGraph(graph)),
    releaseGraph: (graph: number) => (graphs.released++, releaseGraph(graph)),
  });
  return { device, graphs };
}

const texts = async ({ batch }: RunSpec) =>
  batch.maskDocuments ? endedByLetters(await dataset()) : await dataset();

async function outcomeOf(device: ReturnType<typeof openCuda>, spec: RunSpec) {
  const run = await beginRun({
    ...{ spec, device, dataset: await texts(spec), runFolder: newFolder(), attempt: 1 },
  });
  const losses = ofKind(await runLoop(run), 'step').map(({ loss }) => loss);
  const weights = await weightsOf(run);
  disposeRun(run);
  return { losses, weights };
}

/** Full-rank steps, then cycles with merges, evaluations and checkpoints between them. */
const spec: RunSpec = { ...goldenSpec, device: 'cuda', precision: 'bfloat16' };
const specs: [name: string, spec: RunSpec][] = [
  ['whole steps', { ...spec, batch: { ...spec.batch, microBatchSequenceCount: spec.batch.sequenceCount } }],
  ['micro-batches, recomputed', { ...spec, recomputation: 'blocks' }],
  ['documents masked, others in each step', { ...spec, batch: { ...spec.batch, maskDocuments: true } }],
  [
    'micro-batches with dropout',
    { ...spec, adapter: { ...spec.adapter!, dropout: 0.2 }, streams: { ...spec.streams, dropout: 2 } },
  ],
];

describe('what a run queues at each step', () => {
  it.each(specs)('runs as a graph of the card and has the same bits: %s', async (_name, of) => {
    const plain = openWatched();
    plain.device.repeat = (_key, tokens, work) => work(tokens);
    const wanted = await outcomeOf(plain.device, of);
    expect(plain.graphs.made).toBe(0);

    const { device, graphs } = openWatched();
    expect(await outcomeOf(device, of)).toEqual(wanted);
    expect(graphs.run, 'most steps').toBeGreaterThan(wanted.losses.length / 2);
    expect(graphs.made, 'again after each restart').toBeGreaterThan(2);
    const counts = (kernels: ReadonlyMap<string, number>) => Object.fromEntries(kernels);
    expect(counts(device.kernelCounts())).toEqual(counts(plain.device.kernelCounts()));
    expect(graphs.released, 'they go with the run').toBe(graphs.made);
    expect(device.memory()).toEqual({ count: 0, bytes: 0 });
  });

  it('is queued as ever where the driver makes no graph of it', async () => {
    const plain = openWatched();
    plain.device.repeat = (_key, tokens, work) => work(tokens);
    const wanted = await outcomeOf(plain.device, spec);
    const { device, graphs } = openWatched();
    const { endCapture, releaseGraph } = device.card;
    let refusals = 0;
    Object.assign(device.card, {
      endCapture: () => {
        releaseGraph(endCapture());
        refusals++;
        throw new DeviceFault('DEVICE_LOST', 'CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED');
      },
    });
    expect(await outcomeOf(device, spec)).toEqual(wanted);
    expect(refusals).toBe(1);
    expect(graphs.run).toBe(0);
    expect(device.memory()).toEqual({ count: 0, bytes: 0 });
  });

  it('is checked for ids outside of the vocabulary also where a graph runs', () => {
    const { device } = openWatched();
    const shape = { rows: 4, vocabulary: 8, hidden: 8 };
    const [table, y] = [device.alloc(64), device.alloc(32, 'activation')];
    const repeat = (id: number) =>
      device.repeat(
        [1],
        { inputs: new Int32Array(4).fill(id), targets: new Int32Array(4), documents: null, dropout: null },
        ({ inputs }) => device.embeddingForward(y, table, inputs, shape),
      );
    for (let i = 0; i < 4; i++) repeat(i);
    expect(() => repeat(8)).toThrow(/embeddingForward: ids: expected 0 to 7, got 8/);
    repeat(7);
  });
});
