import { spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import {
  beginRun,
  cycleMeanBytes,
  ExchangeCollective,
  exchangedBytes,
  openDevice,
  presets,
  reductionTypes,
  SharedMemory,
  type Device,
  type GivenSpec,
  type ReductionType,
  type RunSpec,
  type TrainingEvent,
} from '@relora/engine';
import { fromBfloat16, toBfloat16 } from '../../engine/dist/io/halfFloats.js';
import { Random } from '../../engine/dist/random.js';
import { runRanks, sharedFile, type RankResult } from './rankRuns.js';
import {
  licenseDataset,
  ofKind,
  reported,
  runLoop,
  temporaryFolders,
  tinySpec,
  weightsOf,
} from './tinyRun.js';

const newFolder = temporaryFolders();
process.setMaxListeners(50); // members of this process, which it leaves when it exits
const dataset = licenseDataset(newFolder);
let device: Device;

beforeAll(async () => {
  device = await openDevice({ device: 'native', precision: 'float32', threads: 1 });
});

async function ranks(spec: RunSpec, size: number, options: Partial<Parameters<typeof runRanks>[0]> = {}) {
  const datasetFolder = (await dataset()).folder;
  const results = await runRanks({ spec, size, datasetFolder, folder: newFolder(), ...options });
  return results as RankResult[];
}

async function aloneEvents(spec: RunSpec) {
  const run = await beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
  return { run, events: await runLoop(run) };
}

const lossesOf = (events: TrainingEvent[]) => ofKind(events, 'step').map(({ loss }) => loss);

/**
 * A run with everything that ranks must agree on: a warm start, merges, dropout, clipping, an evaluation, a sample and intermediate
 * checkpoints.
 */
const wholeSpec = (changes: Parameters<typeof tinySpec>[0] = {}) =>
  tinySpec({
    batch: { microBatchSequenceCount: 1 },
    adapter: { dropout: 0.1 },
    evaluation: { everyStepCount: 8 },
    checkpoint: { everyStepCount: 10 },
    sample: { everyStepCount: 12 },
    ...changes,
  });

describe('a run of several processes', () => {
  it.each([2, 4])('learns in %d ranks what one process learns from the same batches', async (size) => {
    const { run, events } = await aloneEvents(wholeSpec());
    const results = await ranks(wholeSpec(), size);
    expect(results.map(({ problem }) => problem)).toEqual(Array(size).fill(undefined));
    // The same events, and the same curve up to rounding, since sums have another order.
    const first = reported(results[0]!.events);
    expect(first.map(({ kind }) => kind)).toEqual(reported(events).map(({ kind }) => kind));
    const [wanted, got] = [lossesOf(events), lossesOf(results[0]!.events)];
    for (const [step, loss] of got.entries()) expect(Math.abs(loss - wanted[step]!)).toBeLessThan(2e-4);
    expect(Math.abs(got[0]! - wanted[0]!)).toBeLessThan(1e-6);
    const weights = await weightsOf(run);
    for (const [name, values] of Object.entries(results[0]!.weights))
      for (const [index, value] of values.entries())
        expect(Math.abs(value - weights.get(name)![index]!)).toBeLessThan(2e-3);
    // All have the same bits at the end.
    for (const one of results) {
      expect(one.weightsSha256).toBe(results[0]!.weightsSha256);
      expect(one.momentsSha256).toBe(results[0]!.momentsSha256);
      expect(lossesOf(one.events)).toEqual(got);
    }
  });

  it.each(reductionTypes)(
    'gives the same bits each time, and after a stop and a resume, in %s',
    async (reductionType) => {
      const spec = wholeSpec({ reductionType });
      const once = await ranks(spec, 2);
      // A rank may exchange gradients as they are computed, or afterwards.
      const twice = await ranks(spec, 2, { orders: [{ overlaps: true }, {}] });
      expect(twice.map(({ weightsSha256 }) => weightsSha256)).toEqual(
        once.map(({ weightsSha256 }) => weightsSha256),
      );
      expect(reported(twice[0]!.events)).toEqual(reported(once[0]!.events));

      const folder = newFolder();
      const before = await ranks(spec, 2, { folder, stopAfter: 13 });
      expect(before.map(({ problem }) => problem)).toEqual([undefined, undefined]);
      // Neither left while the other waited: both took the same steps.
      expect(lossesOf(before[1]!.events)).toEqual(lossesOf(before[0]!.events));
      expect(lossesOf(before[0]!.events)).toHaveLength(14);
      const after = await ranks(spec, 2, { folder, checkpointPath: before[0]!.checkpointPath });
      expect([...lossesOf(before[0]!.events), ...lossesOf(after[0]!.events)]).toEqual(
        lossesOf(once[0]!.events),
      );
      expect(after.map(({ weightsSha256 }) => weightsSha256)).toEqual(
        once.map(({ weightsSha256 }) => weightsSha256),
      );
      expect(after[0]!.momentsSha256).toBe(once[0]!.momentsSha256);
    },
  );
});

describe('sums', () => {
  /** The sums of all members, here in one process: each call waits in its own thread. */
  async function summed(parts: readonly Float32Array[], type: ReductionType): Promise<Float32Array[]> {
    const file = sharedFile(parts.length);
    const members = parts.map((_, rank) => new SharedMemory(file, rank, parts.length));
    const values = parts.map((part) => part.slice());
    await Promise.all(members.map((member, rank) => member.sum(values[rank]!, type)));
    closeSync(file);
    return values;
  }
  const placeOfDifference = (got: Float32Array, wanted: Float32Array) =>
    got.findIndex((value, index) => !Object.is(value, wanted[index]));
  const rounded = (value: number) => fromBfloat16(toBfloat16(value));
  const float32 = Math.fround;

  // More than a slot, and not divisible by any number of members.
  const count = 600_001;
  const random = Random.forStream(7);
  const parts = Array.from({ length: 3 }, () =>
    Float32Array.from({ length: count }, () => (random.uniform() - 0.5) * 2 ** (40 * random.uniform() - 20)),
  );
  for (const [index, value] of [NaN, Infinity, -Infinity, 3.4e38, 1e-40, -0, 1.00390625].entries())
    parts[1]![index] = value;
  const [first, second, third] = parts as [Float32Array, Float32Array, Float32Array];

  it('are made in float32, rank by rank', async () => {
    const wanted = first.map((value, index) => float32(float32(value + second[index]!) + third[index]!));
    for (const got of await summed(parts, 'float32')) expect(placeOfDifference(got, wanted)).toBe(-1);
  });

  it('of what was rounded to bfloat16 are made in float32, rank by rank, and rounded once', async () => {
    const wanted = first.map((value, index) => {
      const two = float32(rounded(value) + rounded(second[index]!));
      return rounded(float32(two + rounded(third[index]!)));
    });
    expect(wanted.slice(0, 4)).toEqual(Float32Array.of(NaN, Infinity, -Infinity, Infinity));
    for (const got of await summed(parts, 'bfloat16')) expect(placeOfDifference(got, wanted)).toBe(-1);
  });

  it('are refused where members let values travel as different types', async () => {
    const file = sharedFile(2);
    const [one, other] = [0, 1].map((rank) => new SharedMemory(file, rank, 2));
    const calls = [one!.sum(new Float32Array(8), 'float32'), other!.sum(new Float32Array(8), 'bfloat16')];
    for (const call of await Promise.allSettled(calls))
      expect(call).toMatchObject({ status: 'rejected', reason: { reason: 'RANK_LOST' } });
    closeSync(file);
  });
});

describe('gradients that are exchanged while others are computed', () => {
  /** Both ranks in this process, over memory with slots so small that a step has dozens of pieces. */
  async function bothRanks(spec: RunSpec, overlaps: boolean, threads: number) {
    const { precision } = spec;
    const file = sharedFile(2, 65_536 + 4 * 4096);
    const source = await dataset();
    const reached: number[] = [];
    const results = await Promise.all(
      [0, 1].map(async (rank) => {
        const own = await openDevice({ device: 'native', precision, threads });
        const exchange = new SharedMemory(file, rank, 2);
        Object.defineProperty(exchange, 'overlaps', { value: overlaps });
        const reach = exchange.reach.bind(exchange);
        exchange.reach = (count) => reach((reached.push(count), count));
        const collective = new ExchangeCollective(own, exchange);
        const options = {
          spec,
          device: own,
          collective,
          dataset: source,
          runFolder: newFolder(),
          attempt: 1,
        };
        const run = await beginRun(options);
        const events = await runLoop(run);
        const moments = await Promise.all([...run.optimizer.state()].map(async ({ read }) => await read()));
        return { events: reported(events), weights: await weightsOf(run), moments };
      }),
    );
    closeSync(file);
    return { results, reached };
  }

  it.each<[string, GivenSpec, number?]>([
    ['ReLoRA with a warm start and dropout', {}],
    ['in several threads, in bfloat16', { reductionType: 'bfloat16' }, 3],
    [
      'directions of the gradient, full-rank steps between cycles',
      { adapter: { initialisation: 'gradientSvd', fullRankStepCount: 1 } },
    ],
    [
      'moments that are pruned by magnitude, recomputation, trainable scales',
      { adapter: { momentReset: 'magnitude', trainableScale: true }, recomputation: 'blocks' },
    ],
    ['LoRA on a base in int8', { kind: 'lora', precision: 'int8Base', adapter: { dropout: 0 } }],
    [
      'all weights, with biases, norms of heads and a tied head',
      {
        kind: 'fullRank',
        adapter: null,
        model: { attentionBias: true, qkNorm: true, tieWordEmbeddings: true },
      },
    ],
  ])('%s: the same bits as when they are exchanged afterwards', async (_name, changes, threads = 1) => {
    const cycles = { dropout: 0.1, cycleStepCount: 3, restartWarmupStepCount: 1 };
    const adapter = changes.adapter === null ? null : { ...cycles, ...changes.adapter };
    const spec = tinySpec({
      ...{ warmStart: { stepCount: 2, warmupStepCount: 1 }, stepCount: 6 },
      ...{ batch: { microBatchSequenceCount: 1 }, ...changes, adapter },
    });
    const after = await bothRanks(spec, false, threads);
    const meanwhile = await bothRanks(spec, true, threads);
    expect(after.reached).toEqual([]);
    expect(meanwhile.reached.length).toBeGreaterThanOrEqual(2 * 6 * spec.stepCount);
    expect(meanwhile.results).toEqual(after.results);
  });

  it('are given up where their computation fails; the other ranks wait until that one leaves', async () => {
    const file = sharedFile(2, 65_536 + 4 * 4096);
    const buffers = [0, 1].map(() => device.alloc(100_000));
    const [one, other] = buffers.map((buffer, rank) => {
      device.zero(buffer);
      const exchange = new SharedMemory(file, rank, 2);
      Object.defineProperty(exchange, 'overlaps', { value: true });
      return new ExchangeCollective(device, exchange);
    });
    let isOver = false;
    const waiting = other!.sumWritten(buffers[1]!, 'float32', () => {}).finally(() => (isOver = true));
    const failing = one!.sumWritten(buffers[0]!, 'float32', (reach) => {
      reach!(50_000);
      throw new Error('no memory');
    });
    await expect(failing).rejects.toThrow('no memory');
    expect(isOver).toBe(false);
    one!.leave();
    await expect(waiting).rejects.toMatchObject({ reason: 'RANK_LOST' });
    buffers.forEach((buffer) => device.release(buffer));
    closeSync(file);
  });
});

describe('what ranks agree on', () => {
  /** Everything that sums of ranks affect in a run. */
  it.each<[string, Parameters<typeof tinySpec>[0]]>([
    ['full-rank steps between cycles', { adapter: { fullRankStepCount: 2 } }],
    [
      'adapters along the gradient, frozen A',
      { adapter: { initialisation: 'gradientSvd', trainedFactors: 'bOnly' } },
    ],
    [
      'moments that are pruned by magnitude, in eight bits',
      { adapter: { momentReset: 'magnitude' }, optimizer: { momentType: 'int8' } },
    ],
    ['a base in int8, recomputation', { precision: 'int8Base', recomputation: 'blocks' }],
    ['documents that do not see each other', { batch: { maskDocuments: true } }],
    ['LoRA without restarts', { kind: 'lora' }],
    ['all weights', { kind: 'fullRank', adapter: null }],
    [
      'Muon, LoRA-Muon, and APOLLO-Mini between cycles',
      {
        warmStart: { optimizer: 'muon' },
        adapter: { adapterOptimizer: 'loraMuon', fullRankStepCount: 2, fullRankOptimizer: 'apolloMini' },
      },
    ],
    ['gradients in bfloat16', { reductionType: 'bfloat16', adapter: { fullRankStepCount: 2 } }],
  ])('%s: the same bits in all, and the losses of one process', async (_name, changes) => {
    const spec = tinySpec({ ...changes, batch: { ...changes?.batch, microBatchSequenceCount: 1 } });
    const results = await ranks(spec, 2);
    expect(results.map(({ problem }) => problem)).toEqual([undefined, undefined]);
    expect(results[1]!.weightsSha256).toBe(results[0]!.weightsSha256);
    expect(results[1]!.momentsSha256).toBe(results[0]!.momentsSha256);
    const precision = spec.precision;
    const own = await openDevice({ device: 'native', precision, threads: 1 });
    const run = await beginRun({
      spec,
      device: own,
      dataset: await dataset(),
      runFolder: newFolder(),
      attempt: 1,
    });
    const wanted = lossesOf(await runLoop(run));
    // Directions, codes and integers may round differently if a sum differs in its last bit.
    const tolerance =
      changes?.adapter?.initialisation ||
      changes?.optimizer ||
      changes?.reductionType ||
      precision === 'int8Base'
        ? 0.05
        : 5e-4;
    for (const [step, loss] of lossesOf(results[0]!.events).entries())
      expect(Math.abs(loss - wanted[step]!), `step ${step}`).toBeLessThan(tolerance);
  });

  it('a step that is not finite, which none applies', async () => {
    // Extreme rates: the loss overflows after some steps.
    const spec = tinySpec({
      warmStart: { learningRate: 1, warmupStepCount: 0 },
      optimizer: { gradientNormMax: 1e6, nonfiniteStepCountMax: 2 },
      learningRate: { peak: 1 },
    });
    const spoiled = { ...spec, warmStart: { ...spec.warmStart, learningRate: 1e30 } };
    const [first, second] = await ranks(spoiled, 2);
    expect(first!.problem?.reason).toBe('TRAINING_DIVERGED');
    expect(second!.problem).toEqual(first!.problem);
  });

  it('that a member is lost, which the others say', async () => {
    const results = await runRanks({
      spec: wholeSpec(),
      size: 2,
      datasetFolder: (await dataset()).folder,
      folder: newFolder(),
      // The second rank finds no data set, and leaves.
      orders: [{}, { datasetFolder: '/nowhere' }],
    });
    expect(results[1]!.problem!.message).toMatch(/manifest.json: expected a readable file/);
    expect(results[0]!.problem).toMatchObject({
      reason: 'RANK_LOST',
      message: 'The ranks cannot continue: rank 1 of 2 has left the run',
    });
  });

  it.each([
    ['for another', 'gather(new Uint8Array(8))'],
    ['for values of its own', "sum(new Float32Array(8), 'float32', 0)"],
  ])('that one ends which waits %s, and which has no more to wait for', async (_what, call) => {
    const script = `
      import { SharedMemory } from '@relora/engine';
      new SharedMemory(3, 0, 2).${call}.catch(() => {});
      setTimeout(() => process.exit(7), 100);`;
    const file = sharedFile(2);
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'inherit', 'inherit', file],
    });
    const code = await new Promise((resolve) => child.once('close', resolve));
    expect(code).toBe(7);
    // What it sent before still counts; members that wait for more are informed.
    const other = new SharedMemory(file, 1, 2);
    if (call.startsWith('gather')) expect(await other.gather(new Uint8Array(8))).toHaveLength(16);
    await expect(other.gather(new Uint8Array(8))).rejects.toMatchObject({ reason: 'RANK_LOST' });
    closeSync(file);
  });

  it('that all hold the same weights, and ends where one does not', async () => {
    const results = await ranks(wholeSpec(), 2, { orders: [{}, { spoilsWeightAt: 3 }] });
    for (const { problem } of results) {
      expect(problem!.reason).toBe('RANK_LOST');
      expect(problem!.message).toMatch(/do not hold the same weights before step 12/);
    }
  });
});

describe('ranks that train a cycle by themselves', () => {
  const apart = (changes: Parameters<typeof tinySpec>[0] = {}) =>
    wholeSpec({ synchronization: 'everyCycle', replicas: 2, ...changes });
  const kindsOf = (events: TrainingEvent[], kind: TrainingEvent['kind']) =>
    events.flatMap((event) => (event.kind === kind && 'step' in event ? [event.step] : []));

  it('hold the same weights after each of them, and learn what ranks learn that agree in every step', async () => {
    const [first, second] = await ranks(apart(), 2);
    expect([first!.problem, second!.problem]).toEqual([undefined, undefined]);
    expect(second!.weightsSha256).toBe(first!.weightsSha256);
    expect(second!.momentsSha256).toBe(first!.momentsSha256);
    // A warm start of 6 steps, cycles of 6: the last one ends with the run. Duties that become due within a cycle wait for its end.
    expect(kindsOf(first!.events, 'restart')).toEqual([12, 18, 24]);
    expect(kindsOf(first!.events, 'checkpoint')).toEqual([6, 12, 18, 24]);
    expect(kindsOf(first!.events, 'evaluation')).toEqual([0, 12, 18, 24]);
    expect(kindsOf(first!.events, 'sample')).toEqual([12, 24]);

    const [together] = await ranks(wholeSpec(), 2);
    const [got, wanted] = [first!, together!].map(({ events }) => lossesOf(events));
    // Equal until each has taken an independent step; the first step of a warm-up changes nothing.
    expect(got!.slice(0, 8)).toEqual(wanted!.slice(0, 8));
    expect(got![8]).not.toBe(wanted![8]);
    for (const [step, loss] of got!.entries()) expect(Math.abs(loss - wanted![step]!)).toBeLessThan(0.2);
  });

  it('give the same bits each time, and after a stop within a cycle and a resume from its beginning', async () => {
    const once = await ranks(apart(), 2);
    const folder = newFolder();
    const before = await ranks(apart(), 2, { folder, stopAfter: 15 });
    expect(before.map(({ problem }) => problem)).toEqual([undefined, undefined]);
    expect(before[0]!.checkpointPath).toMatch(/step-00000012-1$/);
    const after = await ranks(apart(), 2, { folder, checkpointPath: before[0]!.checkpointPath });
    expect(lossesOf(after[0]!.events)).toEqual(lossesOf(once[0]!.events).slice(12));
    expect(after.map(({ weightsSha256 }) => weightsSha256)).toEqual(
      once.map(({ weightsSha256 }) => weightsSha256),
    );
    expect(after[0]!.momentsSha256).toBe(once[0]!.momentsSha256);
  });

  it.each<[string, Parameters<typeof tinySpec>[0]]>([
    ['a base in int8, recomputation', { precision: 'int8Base', recomputation: 'blocks' }],
    ['trainable scales', { adapter: { trainableScale: true } }],
    ['adapters by LoRA-Muon', { adapter: { adapterOptimizer: 'loraMuon' } }],
    ['merged graphs', { adapter: { graph: 'merged' } }],
  ])('%s: the same bits in all', async (_name, changes) => {
    const [first, second] = await ranks(apart({ ...changes, batch: { microBatchSequenceCount: 1 } }), 2);
    expect([first!.problem, second!.problem]).toEqual([undefined, undefined]);
    expect(second!.weightsSha256).toBe(first!.weightsSha256);
    expect(second!.momentsSha256).toBe(first!.momentsSha256);
  });

  it('take no step whose gradient is not finite in one of them', async () => {
    const spec = apart({
      warmStart: { stepCount: 0 },
      optimizer: { gradientNormMax: 1e6, nonfiniteStepCountMax: 2 },
    });
    const spoiled = { ...spec, learningRate: { ...spec.learningRate, peak: 1e30 } };
    const [first, second] = await ranks(spoiled, 2);
    expect(first!.problem?.reason).toBe('TRAINING_DIVERGED');
    expect(second!.problem?.reason).toBe('TRAINING_DIVERGED');
  });

  it('exchange weights once a cycle, and what is shared with its moments', async () => {
    const spec = apart({ adapter: { trainableScale: true }, evaluation: { finalTokenCount: 32 } });
    const [first] = await ranks(spec, 2);
    const rows = 4 * spec.batch.sequenceCount * spec.batch.sequenceLength;
    const { warmStart } = spec;
    expect(first!.summedBytes).toBe(
      warmStart.stepCount * exchangedBytes(spec, 'warmStart') + 3 * cycleMeanBytes(spec) + 24 * rows,
    );
  });
});

describe('what travels', () => {
  const rowsOf = ({ batch }: RunSpec) => 4 * batch.sequenceCount * batch.sequenceLength;

  it.each<[string, Parameters<typeof tinySpec>[0]]>([
    ['ReLoRA after a warm start', {}],
    ['ReLoRA with full-rank steps', { adapter: { fullRankStepCount: 2 } }],
    [
      'adapters on some layers, of several ranks',
      { adapter: { targetModules: ['q_proj', 'down_proj'], moduleRanks: { down_proj: 7 } } },
    ],
    ['B alone', { adapter: { trainedFactors: 'bOnly' } }],
    [
      'Muon, LoRA-Muon, and APOLLO-Mini between cycles',
      {
        warmStart: { optimizer: 'muon' },
        adapter: { adapterOptimizer: 'loraMuon', fullRankStepCount: 2, fullRankOptimizer: 'apolloMini' },
      },
    ],
    ['gradients in bfloat16', { reductionType: 'bfloat16' }],
    ['trainable scales', { adapter: { trainableScale: true } }],
    ['LoRA', { kind: 'lora' }],
    ['all weights', { kind: 'fullRank', adapter: null }],
    [
      'all weights with biases, norms of heads and a tied head',
      {
        kind: 'fullRank',
        adapter: null,
        model: { attentionBias: true, qkNorm: true, tieWordEmbeddings: true },
      },
    ],
  ])('%s: as many bytes as the formula says', async (_name, changes) => {
    const spec = tinySpec({ ...changes, evaluation: { finalTokenCount: 32 } });
    const [first] = await ranks(spec, 2);
    const steps = ofKind(first!.events, 'step');
    const expected = steps.reduce((sum, { phase }) => sum + exchangedBytes(spec, phase) + rowsOf(spec), 0);
    expect(first!.summedBytes).toBe(expected);
  });

  it.each(['demo', 'llama-9m'])('%s as it is: as many bytes as the formula says', async (name) => {
    const spec = tinySpec({
      model: { ...presets[name]!, vocabSize: 257 },
      warmStart: { stepCount: 1, warmupStepCount: 0 },
      adapter: { rank: 64, cycleStepCount: 1, restartWarmupStepCount: 0 },
      stepCount: 1,
      evaluation: { finalTokenCount: 32 },
    });
    const [first] = await ranks(spec, 2);
    expect(first!.summedBytes).toBe(
      exchangedBytes(spec, 'warmStart') + exchangedBytes(spec, 'adapter') + 2 * rowsOf(spec),
    );
  });
});
