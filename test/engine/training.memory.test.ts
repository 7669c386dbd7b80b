import { readdirSync, readFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { beforeAll, describe, expect, it } from 'vitest';
import { beginRun, disposeRun, Llama, openDevice, type Device } from '@relora/engine';
import type { CpuDevice } from '../../engine/dist/device/cpu/cpuDevice.js';
import type { AdapterPlan } from '../../engine/dist/model/adapterSet.js';
import { separateGraphs } from '../../engine/dist/plan/adapterGraphs.js';
import { linearShapes } from '../../engine/dist/plan/parameters.js';
import { change, lossAndGradients } from './hostModel.js';
import { licenseDataset, ofKind, runLoop, temporaryFolders, tinySpec } from './tinyRun.js';

// Enabled here, because the measurement needs unreachable objects to be freed.
setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);

// 24 MiB of linear weights.
const { model: config, adapter } = tinySpec({
  model: { hiddenSize: 512, intermediateSize: 1376, numAttentionHeads: 8, numKeyValueHeads: 8 },
});
const baseBytes =
  4 *
  config.numHiddenLayers *
  Object.values(linearShapes(config)).reduce(
    (sum, { inFeatures, outFeatures }) => sum + inFeatures * outFeatures,
    0,
  );
const ids = Int32Array.from({ length: 32 }, (_, i) => (i * 37) % 257);
const targets = ids.map((id) => (id + 1) % 257);

let device: Device;
beforeAll(async () => {
  device = await openDevice({ device: 'native', precision: 'bfloat16', threads: 2 });
});

/** Total bytes of mapped files in a folder, deleted ones included, and how many of them are in memory. */
function mappedIn(folder: string): { size: number; resident: number } {
  const bytes = { size: 0, resident: 0 };
  let isCounted = false;
  for (const line of readFileSync('/proc/self/smaps', 'utf8').split('\n')) {
    const kilobytes = /^(\w+): +(\d+) kB$/.exec(line);
    if (/^[0-9a-f]+-[0-9a-f]+ /.test(line)) isCounted = line.includes(`${folder}/`);
    else if (isCounted && kilobytes?.[1] === 'Size') bytes.size += 1024 * Number(kilobytes[2]);
    else if (isCounted && kilobytes?.[1] === 'Rss') bytes.resident += 1024 * Number(kilobytes[2]);
  }
  return bytes;
}

function newModel(masterFolder: string | null): Llama {
  const plan: AdapterPlan = { graphs: separateGraphs, masterFolder };
  const model = Llama.create(device, config, 3);
  model.attachAdapters(adapter!, 3, 0, plan);
  for (const parameter of model.parameters.values())
    if (parameter.role === 'adapterB') change(device, parameter, (value) => value + 0.01);
  return model;
}

/** All uses of a model in a run, with their results: a step, a probe, an export, a merge and everything again. */
async function* use(model: Llama): AsyncGenerator<[name: string, values: Float32Array]> {
  for (const round of ['before', 'after'] as const) {
    const { loss } = lossAndGradients(model, ids, targets, 1, ids.length);
    yield [`the loss ${round} the merge`, Float32Array.of(loss)];
    yield [`the probe ${round} the merge`, await model.logits(ids, 1, ids.length, { precision: 'float32' })];
    for (const layer of model.layers) {
      yield [`${layer.name} as exported ${round} the merge`, await model.mergedWeight(layer)];
      yield [`${layer.name} as stored ${round} the merge`, await model.valuesOf(layer.weight)];
    }
    if (round === 'after') return;
    const { deltaNorm } = await model.mergeAdapters();
    model.restartAdapters(3, 1);
    yield ['the norm of the merge', Float32Array.of(deltaNorm)];
  }
}

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

describe('float32 weights of a frozen base, with a folder for them', () => {
  it.runIf(process.platform === 'linux')('are in no memory between the moments that need them', async () => {
    const folder = newFolder();
    const model = newModel(folder);
    expect(mappedIn(folder).size).toBeGreaterThanOrEqual(baseBytes);
    // Up to a page at each end of a weight stays in memory.
    const residentMax = 2 * 4096 * model.layers.length;
    expect(mappedIn(folder).resident).toBeLessThanOrEqual(residentMax);
    for await (const [name] of use(model))
      expect(mappedIn(folder).resident, name).toBeLessThanOrEqual(residentMax);
    // Without release, pages that were read count, except for single ones, which the system may reclaim at any time.
    for (const { weight } of model.layers)
      (device as CpuDevice).floats(weight.buffer).reduce((sum, value) => sum + value);
    expect(mappedIn(folder).resident).toBeGreaterThanOrEqual(0.95 * baseBytes);
    model.dispose();
  });

  it('are the same numbers in every use', async () => {
    const folder = newFolder();
    const [mapped, plain] = [newModel(folder), newModel(null)];
    const expected = await all(use(plain));
    const found = await all(use(mapped));
    expect(found.map(([name]) => name)).toEqual(expected.map(([name]) => name));
    const bits = ({ buffer, byteOffset, byteLength }: Float32Array) =>
      Buffer.from(buffer, byteOffset, byteLength);
    const differing = found.filter(([, values], i) => !bits(values).equals(bits(expected[i]![1])));
    expect(differing.map(([name]) => name)).toEqual([]);
    [mapped, plain].forEach((model) => model.dispose());
  });

  it('leave no file in the folder, while they are used and after', () => {
    const folder = newFolder();
    const model = newModel(folder);
    expect(readdirSync(folder)).toEqual([]);
    model.dispose();
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe('a run', () => {
  it.runIf(process.platform === 'linux').each([
    ['separate', true],
    ['merged', false],
  ] as const)('with %s paths keeps its float32 weights on disk: %s', async (graph, isMapped) => {
    const native = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
    const spec = tinySpec({ adapter: { graph }, warmStart: { stepCount: 1 }, stepCount: 2 });
    const runFolder = newFolder();
    const run = await beginRun({ spec, device: native, dataset: await dataset(), runFolder, attempt: 1 });
    expect(mappedIn(runFolder).size).toBe(0);
    await runLoop(run);
    // A merged graph reads them at every step.
    expect(mappedIn(runFolder).size > 0).toBe(isMapped);
    expect(readdirSync(runFolder).sort()).toEqual(['checked-shards.json', 'checkpoints', 'start']);
    disposeRun(run);
  });

  it('keeps nothing of a restart, whose proof holds logits', async () => {
    const open = await openDevice({ device: 'native', precision: 'int8Base', threads: 1 });
    const run = await beginRun({
      spec: tinySpec({
        precision: 'int8Base',
        model: { vocabSize: 8192, hiddenSize: 64, intermediateSize: 64 },
        warmStart: { stepCount: 0 },
        stepCount: 18,
      }),
      device: open,
      dataset: await dataset(),
      runFolder: newFolder(),
      attempt: 1,
    });
    const held = new Map<number, number>();
    const events = await runLoop(run, (event) => {
      if (event.kind !== 'step') return false;
      // Arrays are freed concurrently; a second collection waits for the first one's.
      for (let times = 0; times < 3; times++) collectGarbage();
      held.set(event.step, process.memoryUsage().arrayBuffers + open.memory().bytes);
      return false;
    });
    expect(ofKind(events, 'restart').map(({ step }) => step)).toEqual([6, 12]);
    // The logits of its probe by themselves take this many bytes, which steps do not use.
    const logitBytes = 4 * 32 * 8192;
    for (const restart of [6, 12])
      expect(held.get(restart)! - held.get(restart - 1)!).toBeLessThan(logitBytes / 2);
    disposeRun(run);
    open.close();
  });
});
