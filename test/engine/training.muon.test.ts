import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  openDevice,
  type BeginRunOptions,
  type Device,
  type RunSpec,
} from '@relora/engine';
import { openCuda } from '@relora/engine/cuda';
import { GradientBuffer } from '../../engine/dist/model/gradientBuffer.js';
import { makeParameter, type Parameter } from '../../engine/dist/model/parameter.js';
import { defaultRunSpec } from '../../engine/dist/plan/index.js';
import { methodsOf } from '../../engine/dist/training/optimizerMethods.js';
import { Optimizer } from '../../engine/dist/training/optimizer.js';
import { spanStart, turned } from '../../engine/dist/training/oldSpan.js';
import { Random } from '../../engine/dist/random.js';
import { modelOptions } from '../cuda/modelPaths.js';
import { largest, matrix, multiply, seededArray } from './nativeReference.js';
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

const devices: [name: string, open: () => Promise<Device>][] = [
  ['native', () => openDevice({ device: 'native', precision: 'float32' })],
  ['reference', () => openDevice({ device: 'reference', precision: 'float32' })],
  ['cuda on its model', () => Promise.resolve(openCuda({ ...modelOptions, precision: 'float32' }))],
];

async function begin(
  spec: RunSpec,
  options: Partial<BeginRunOptions> = {},
  device: 'native' | 'reference' = 'native',
) {
  const { precision } = spec;
  const opened = await openDevice({ device, precision, ...(device === 'native' && { threads: 2 }) });
  return beginRun({
    spec,
    device: opened,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
    ...options,
  });
}

// ------------------------------------------------------------------------------- float64 references, written only from the formulas

type Values = Float64Array<ArrayBufferLike>;
const [rows, columns, rank, scale] = [24, 40, 6, 0.5];
const decay = 0.1;
const momentum = 0.95;
const rateOf = (step: number) => 0.012 * (1 - step / 40);

const times = (a: Values, m: number, k: number, b: Values, n: number, turnA = false, turnB = false) =>
  multiply(matrix(a, m, k, turnA), matrix(b, k, n, turnB)).value;
const norm = (x: Values) => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0));

/** sign(x[m, n]) by the polynomial of Jordan and others, for either orientation. */
function signOf(x: Values, m: number, n: number): Values {
  let y = x.map((value) => value / (norm(x) || 1));
  for (let step = 0; step < 5; step++) {
    const square = times(y, m, n, y, m, false, true);
    const fourth = times(square, m, m, square, m);
    const both = square.map((value, i) => -4.775 * value + 2.0315 * fourth[i]!);
    const product = times(both, m, m, y, n);
    y = y.map((value, i) => 3.4445 * value + product[i]!);
  }
  return y;
}

/** S^(-1/2) of a symmetric S[r, r], by Newton's iteration for the square root, without a Cholesky factor. */
function inverseRoot(s: Values, r: number): Values {
  const size = Math.max(...s.map(Math.abs)) * r;
  const identity = Float64Array.from(s, (_, i) => (i % (r + 1) === 0 ? 1 : 0));
  let y: Values = s.map((value) => value / size);
  let z: Values = identity;
  for (let step = 0; step < 60; step++) {
    const zy = times(z, r, r, y, r);
    const half = zy.map((value, i) => 0.5 * (3 * identity[i]! - value));
    [y, z] = [times(y, r, r, half, r), times(half, r, r, z, r)];
  }
  return z.map((value) => value / Math.sqrt(size));
}

function damped(s: Values, damping: number): Values {
  const trace = s.reduce((sum, value, i) => sum + (i % (rank + 1) === 0 ? value : 0), 0);
  const added = Math.max(damping, (1e-6 * trace) / rank);
  return s.map((value, i) => value + (i % (rank + 1) === 0 ? added : 0));
}

/** Length of Muon's step: the singular values of the change. */
const muonLength = (rate: number, m: number, n: number): number => rate * 0.2 * Math.sqrt(Math.max(m, n));

interface Factors {
  a: Values;
  b: Values;
  momentA: Values;
  momentB: Values;
}

/** docs/relora.md §Muon, with symmetric roots as written there. */
function loraMuon({ a, b, momentA, momentB }: Factors, gA: Values, gB: Values, rate: number): Factors {
  const nextA = momentA.map((value, i) => momentum * value + gA[i]!);
  const nextB = momentB.map((value, i) => momentum * value + gB[i]!);
  const uA = gA.map((value, i) => value + momentum * nextA[i]!);
  const uB = gB.map((value, i) => value + momentum * nextB[i]!);
  const budget = muonLength(rate, rows, columns) / scale / 2;
  const [dampingOfA, dampingOfB] = [
    (budget / 0.2) ** 2,
    Math.max(rows, columns) / Math.max(rows, rank) / scale ** 2,
  ];
  const rootA = inverseRoot(damped(times(a, rank, rows, a, rank, true), dampingOfA), rank);
  const rootB = inverseRoot(damped(times(b, rank, columns, b, rank, false, true), dampingOfB), rank);
  const whiteA = times(uA, rows, rank, rootB, rank);
  const turnedA = Float64Array.from(whiteA, (_, i) => whiteA[(i % rows) * rank + Math.floor(i / rows)]!);
  const dA = times(signOf(turnedA, rank, rows), rows, rank, rootB, rank, true);
  const dB = times(rootA, rank, rank, signOf(times(rootA, rank, rank, uB, columns), rank, columns), columns);
  return {
    a: a.map((value, i) => value - budget * dA[i]!),
    b: b.map((value, i) => (1 - rate * decay) * value - budget * dB[i]!),
    momentA: nextA,
    momentB: nextB,
  };
}

const wide = (values: ArrayLike<number>): Values => Float64Array.from(values);
const gradient = (name: string, step: number, length: number) =>
  seededArray(length, 1000 + 17 * step + name.length, 0.5);

const seed = 5;

function optimizerOf(
  device: Device,
  by: { warmStart?: 'muon' | 'apolloMini'; adapters?: 'loraMuon' },
  parameters: Parameter[],
) {
  const spec = defaultRunSpec({
    kind: 'relora',
    stepCount: 10,
    seed,
    warmStart: { stepCount: 10, optimizer: by.warmStart ?? 'adamw' },
    adapter: { rank, alpha: scale * rank, adapterOptimizer: by.adapters ?? 'adamw' },
    optimizer: { weightDecay: decay },
  });
  return new Optimizer(
    device,
    spec.optimizer,
    methodsOf(spec, new Map(parameters.map((parameter) => [parameter.name, parameter]))),
  );
}

const read = async (device: Device, { buffer }: Parameter) => wide(await device.download(buffer));

describe.each(devices)('ten steps agree with float64 within a millionth on %s', (_name, open) => {
  const layer = 'model.layers.0.self_attn.q_proj';

  function update(
    device: Device,
    optimizer: Optimizer,
    parameters: Parameter[],
    step: number,
    phase: 'warmStart' | 'adapter',
  ) {
    const gradients = new GradientBuffer(device, parameters);
    for (const parameter of parameters)
      device.upload(gradients.of(parameter)!, gradient(parameter.name, step, parameter.buffer.length));
    const result = device.newResult(0);
    device.clearResult(result);
    optimizer.apply(gradients, rateOf(step), { result, normMax: Infinity }, phase);
    gradients.dispose();
    device.releaseResult(result);
  }

  it.each([
    [rows, columns],
    [columns, rows],
  ])('by Muon, %i x %i', async (m, n) => {
    const device = await open();
    const start = seededArray(m * n, 5, 0.1);
    const weight = makeParameter(device, `${layer}.weight`, 'base', start, [m, n]);
    const optimizer = optimizerOf(device, { warmStart: 'muon' }, [weight]);
    let w = wide(start);
    let moment = new Float64Array(w.length);
    for (let step = 0; step < 10; step++) {
      update(device, optimizer, [weight], step, 'warmStart');
      const g = wide(gradient(weight.name, step, m * n));
      moment = moment.map((value, i) => momentum * value + g[i]!);
      const u = g.map((value, i) => value + momentum * moment[i]!);
      const sign = signOf(u, m, n);
      const by = muonLength(rateOf(step), m, n);
      w = w.map((value, i) => (1 - rateOf(step) * decay) * value - by * sign[i]!);
    }
    const found = await read(device, weight);
    expect(largest(found.map((value, i) => value - w[i]!))).toBeLessThan(1e-6);
    optimizer.dispose();
    device.close();
  });

  it.each([
    [rows, columns],
    [columns, rows],
  ])('by APOLLO-Mini, %i x %i', async (m, n) => {
    const device = await open();
    const start = seededArray(m * n, 5, 0.1);
    const weight = makeParameter(device, `${layer}.weight`, 'base', start, [m, n]);
    const optimizer = optimizerOf(device, { warmStart: 'apolloMini' }, [weight]);
    const drawn = new Float32Array(Math.min(m, n));
    Random.forStream(seed, 'projection', weight.name, 0).fillNormal(drawn, 1);
    const projection = wide(drawn);
    let w = wide(start);
    let first = new Float64Array(Math.max(m, n));
    let second = new Float64Array(Math.max(m, n));
    let last = 0;
    let limited = 0;
    for (let step = 0; step < 10; step++) {
      update(device, optimizer, [weight], step, 'warmStart');
      const g = wide(gradient(weight.name, step, m * n));
      const shadow = m <= n ? times(projection, 1, m, g, n) : times(g, m, n, projection, 1);
      first = first.map((value, i) => 0.9 * value + 0.1 * shadow[i]!);
      second = second.map((value, i) => 0.999 * value + 0.001 * shadow[i]! ** 2);
      const adam = first.map(
        (value, i) =>
          value / (1 - 0.9 ** (step + 1)) / (Math.sqrt(second[i]! / (1 - 0.999 ** (step + 1))) + 1e-8),
      );
      let factor = (Math.sqrt(128) * norm(adam)) / norm(shadow);
      if (last > 0 && factor * norm(g) > 1.01 * last) {
        factor = (1.01 * last) / norm(g);
        limited++;
      }
      last = factor * norm(g);
      w = w.map((value, i) => (1 - rateOf(step) * decay) * value - rateOf(step) * factor * g[i]!);
    }
    expect(limited, 'steps of both kinds').toBeGreaterThan(0);
    expect(limited).toBeLessThan(9);
    const found = await read(device, weight);
    expect(largest(found.map((value, i) => value - w[i]!))).toBeLessThan(1e-6);
    optimizer.dispose();
    device.close();
  });

  it('by LoRA-Muon, across a merge after five, into the span of the old A with B’s moment carried', async () => {
    const device = await open();
    const [startA, startW] = [seededArray(rows * rank, 6, 0.3), seededArray(rows * columns, 7, 0.1)];
    const a = makeParameter(device, `${layer}.lora_A`, 'adapterA', startA, [rows, rank]);
    const b = makeParameter(device, `${layer}.lora_B`, 'adapterB', new Float32Array(rank * columns), [
      rank,
      columns,
    ]);
    const optimizer = optimizerOf(device, { adapters: 'loraMuon' }, [a, b]);
    const weight = device.alloc(startW.length);
    device.upload(weight, startW);
    let w = wide(startW);
    let factors: Factors = {
      a: wide(startA),
      b: new Float64Array(rank * columns),
      momentA: new Float64Array(rows * rank),
      momentB: new Float64Array(rank * columns),
    };
    const merged = () => {
      const product = times(factors.a, rows, rank, factors.b, columns);
      return w.map((value, i) => value + scale * product[i]!);
    };
    const adapter = { rank, a: a.buffer, b: b.buffer, scale, graph: 'separate' as const, dropout: null };
    const shape = { inFeatures: rows, outFeatures: columns };
    for (let step = 0; step < 10; step++) {
      if (step === 5) {
        w = merged();
        await device.mergeAdapter(weight, weight, adapter, shape);
        const old = {
          a: Float32Array.from(await read(device, a)),
          b: Float32Array.from(await read(device, b)),
          ...shape,
          rank,
        };
        const { a: next, turn } = spanStart(
          old,
          new Float32Array(rows * rank),
          rank,
          Random.forStream(1, 'span'),
        );
        device.upload(a.buffer, next);
        device.zero(b.buffer);
        const zeros = await optimizer.carryAdapters(new Map([[layer, turn]]));
        expect(zeros).toBeCloseTo((rows * rank) / (rows * rank + rank * columns), 6);
        // The reference moves into the same span through its own A: new A = old A T, so the moment of B is multiplied by Tᵀ.
        const t = Float64Array.from(
          { length: rank * rank },
          (_, i) => turn[Math.floor(i / rank)]![i % rank]!,
        );
        factors = {
          a: times(factors.a, rows, rank, t, rank),
          b: new Float64Array(rank * columns),
          momentA: new Float64Array(rows * rank),
          momentB: times(t, rank, rank, factors.momentB, columns, true),
        };
      }
      update(device, optimizer, [a, b], step, 'adapter');
      factors = loraMuon(
        factors,
        wide(gradient(a.name, step, rows * rank)),
        wide(gradient(b.name, step, rank * columns)),
        rateOf(step),
      );
    }
    await device.mergeAdapter(weight, weight, adapter, shape);
    const found = wide(await device.download(weight));
    const expected = merged();
    expect(largest(expected.map((value, i) => value - startW[i]!)), 'it moved').toBeGreaterThan(0.01);
    expect(largest(found.map((value, i) => value - expected[i]!))).toBeLessThan(1e-6);
    optimizer.dispose();
    device.close();
  });
});

describe('a start within the old span', () => {
  const [inFeatures, outFeatures] = [30, 20];
  const old = (r: number) => ({
    a: seededArray(inFeatures * r, 11),
    b: seededArray(r * outFeatures, 12),
    inFeatures,
    outFeatures,
    rank: r,
  });
  const random = () => Random.forStream(3, 'span');

  it('is old A times its turn, at right angles, with columns of the norm of drawn ones', () => {
    const { a, turn } = spanStart(old(5), new Float32Array(inFeatures * 5), 5, random());
    const t = Float64Array.from({ length: 25 }, (_, i) => turn[Math.floor(i / 5)]![i % 5]!);
    const expected = times(wide(old(5).a), inFeatures, 5, t, 5);
    expect(largest(expected.map((value, i) => value - a[i]!))).toBeLessThan(1e-6);
    const gram = times(wide(a), 5, inFeatures, wide(a), 5, true);
    gram.forEach((value, i) => expect(value).toBeCloseTo(i % 6 === 0 ? 1 / 3 : 0, 6));
  });

  it('begins with the directions that the last cycle used most, and leaves the others drawn', () => {
    const used = old(4);
    // Only the third row of B is large: its column of A spans what is used most.
    used.b.forEach((_, i) => (used.b[i]! *= Math.floor(i / outFeatures) === 2 ? 1 : 1e-6));
    const drawn = seededArray(inFeatures * 4, 13);
    const { a } = spanStart(used, drawn, 2, random());
    const column = (values: Float32Array, index: number) =>
      Float64Array.from({ length: inFeatures }, (_, row) => values[row * 4 + index]!);
    const [first, wanted] = [column(a, 0), column(used.a, 2)];
    const cosine =
      first.reduce((sum, value, i) => sum + value * wanted[i]!, 0) / (norm(first) * norm(wanted));
    expect(Math.abs(cosine)).toBeCloseTo(1, 5);
    for (const index of [2, 3]) expect(column(a, index)).toEqual(column(drawn, index));
  });

  it('holds where columns of the old A are the same, and carries nothing of what it had to draw', () => {
    const twin = old(3);
    for (let row = 0; row < inFeatures; row++) twin.a[row * 3 + 2] = twin.a[row * 3 + 1]!;
    const { a, turn } = spanStart(twin, new Float32Array(inFeatures * 3), 3, random());
    expect(a.every(Number.isFinite)).toBe(true);
    expect(turned(seededArray(3 * outFeatures, 14), turn, 3).every(Number.isFinite)).toBe(true);
    expect([...turn[2]!]).toEqual([0, 0, 0]);
  });
});

const between = { fullRankStepCount: 2, fullRankOptimizer: 'muon' } as const;
const runs: [name: string, spec: RunSpec][] = [
  [
    'Muon, then LoRA-Muon into the old span',
    tinySpec({
      warmStart: { optimizer: 'muon' },
      adapter: { adapterOptimizer: 'loraMuon', initialisation: 'oldSpan' },
    }),
  ],
  [
    'Muon, then LoRA-Muon into half of the old span, in eight bits',
    // Matrices of 4096 elements and more have moments in eight bits.
    tinySpec({
      warmStart: { optimizer: 'muon' },
      adapter: {
        ...{ adapterOptimizer: 'loraMuon', initialisation: 'halfSpan' },
        ...{ rank: 32, alpha: 32, targetModules: ['q_proj'] },
      },
      model: { hiddenSize: 128, intermediateSize: 160, numHiddenLayers: 1 },
      optimizer: { momentType: 'int8', momentum: 0.9 },
    }),
  ],
  [
    'APOLLO-Mini, then LoRA-Muon of B alone, and Muon between cycles',
    tinySpec({
      warmStart: { optimizer: 'apolloMini' },
      adapter: { adapterOptimizer: 'loraMuon', trainedFactors: 'bOnly', ...between },
    }),
  ],
  [
    'LoRA-Muon along the gradient’s directions, pruned',
    tinySpec({
      adapter: { adapterOptimizer: 'loraMuon', initialisation: 'gradientSvd', momentReset: 'magnitude' },
    }),
  ],
];

for (const fullRankOptimizer of ['muon', 'apolloMini'] as const)
  runs.push([
    `${fullRankOptimizer} of all weights`,
    tinySpec({ kind: 'fullRank', adapter: null, optimizer: { fullRankOptimizer } }),
  ]);

describe.each(runs)('a run by %s', (_name, spec) => {
  it('learns, and repeats itself when it is resumed in any phase', async () => {
    const run = await begin(spec);
    const events = await runLoop(run);
    const weights = await weightsOf(run);
    if (spec.optimizer.momentType === 'int8') {
      const ofAdapters = [...run.optimizer.state()].filter(({ name }) =>
        /lora_[AB]\.first_moment/.test(name),
      );
      const coded = ofAdapters.filter(({ dtype }) => dtype !== 'F32').map(({ name }) => name);
      expect(coded.some((name) => name.includes('lora_A'))).toBe(true);
      expect(coded.some((name) => name.includes('lora_B'))).toBe(true);
    }
    disposeRun(run);
    const losses = ofKind(events, 'step').map(({ loss }) => loss);
    const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length;
    expect(mean(losses.slice(-4))).toBeLessThan(mean(losses.slice(0, 4)) - 0.5);
    // Within the warm start, at its end, within a cycle, at a restart, and after it (between cycles if there are such steps).
    for (const stopAfter of [3, 6, 9, 12, 13, 15]) {
      const resumed = await interrupted(begin, spec, stopAfter);
      expect(reported(resumed.events), `after ${stopAfter}`).toEqual(reported(events));
      expect(await weightsOf(resumed.run), `after ${stopAfter}`).toEqual(weights);
      disposeRun(resumed.run);
    }
  });
});

it('jobs of all weights by Muon and APOLLO-Mini keep less state than by AdamW', async () => {
  const bytes = new Map<string, number>();
  for (const fullRankOptimizer of ['adamw', 'muon', 'apolloMini'] as const) {
    const spec = tinySpec({ kind: 'fullRank', adapter: null, optimizer: { fullRankOptimizer } });
    const run = await begin(spec);
    const losses = ofKind(await runLoop(run), 'step').map(({ loss }) => loss);
    expect(losses.at(-1)).toBeLessThan(losses[0]! - 1);
    const shapes = [...run.optimizer.state()].map(({ shape }) =>
      shape.reduce((size, side) => size * side, 1),
    );
    bytes.set(fullRankOptimizer, 4 * shapes.reduce((sum, size) => sum + size, 0));
    disposeRun(run);
  }
  const [adamw, muon, apollo] = [...bytes.values()] as [number, number, number];
  expect(muon).toBeLessThan(0.85 * adamw);
  expect(apollo).toBeLessThan(0.75 * adamw);
});

it('a head that is tied to the embedding is accepted, and is updated by AdamW', async () => {
  const spec = tinySpec({
    kind: 'fullRank',
    adapter: null,
    model: { tieWordEmbeddings: true },
    optimizer: { fullRankOptimizer: 'muon' },
  });
  const run = await begin(spec);
  const losses = ofKind(await runLoop(run), 'step').map(({ loss }) => loss);
  expect(losses.at(-1)).toBeLessThan(losses[0]! - 1);
  const names = [...run.optimizer.state()].map(({ name }) => name);
  expect(names.filter((name) => /lm_head/.test(name))).toEqual([]);
  expect(names.filter((name) => /embed_tokens/.test(name))).toEqual([
    'model.embed_tokens.weight.first_moment',
    'model.embed_tokens.weight.second_moment',
  ]);
  expect(names.filter((name) => /0\.self_attn\.q_proj/.test(name))).toEqual([
    'model.layers.0.self_attn.q_proj.weight.first_moment',
  ]);
  disposeRun(run);
});

it('the number of threads changes no bit', async () => {
  const spec = runs[0]![1];
  const weightsBy = async (threads: number) => {
    const device = await openDevice({ device: 'native', precision: 'float32', threads });
    const run = await begin(spec, { device });
    await runLoop(run);
    const weights = await weightsOf(run);
    disposeRun(run);
    return weights;
  };
  expect(await weightsBy(1)).toEqual(await weightsBy(3));
});
