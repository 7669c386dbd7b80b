import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { beginRun, disposeRun, openDevice, type RunSpec, type TrainingRun } from '@relora/engine';
import { Batches } from '@relora/engine/data';
import { Schedule } from '@relora/engine/plan';
import { describe, expect, it } from 'vitest';
import { dropoutMask, philox } from '../engine/dist/device/dropout.js';
import { licenseDataset, runLoop, temporaryFolders, tinySpec, weightsOf } from './engine/tinyRun.js';

const page = fileURLToPath(new URL('../docs/reproducing.md', import.meta.url));
const code = [...readFileSync(page, 'utf8').matchAll(/```python\n([^]*?)```/g)]
  .map((match) => match[1])
  .join('\n');
const hasPython = spawnSync('python3', ['--version']).status === 0;
if (!hasPython) console.warn('Skipped: docs/reproducing.md is not run, since there is no python3');

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder, 500);
const threeQuarters = 0.75;

/** Evaluates a Python expression after the page's code. */
function python(expression: string): unknown {
  const program = `${code}\nprint(json.dumps(${expression}))`;
  const { stdout, stderr, status } = spawnSync('python3', ['-'], {
    input: program,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
}

const float32 = (values: unknown) => Float32Array.from(values as number[]);

async function begin(spec: RunSpec): Promise<TrainingRun> {
  const device = await openDevice({ device: 'reference', precision: 'float32' });
  return await beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
}

describe.skipIf(!hasPython)('the Python of docs/reproducing.md', () => {
  it('draws the weights and adapters that a run begins with, and makes its first update', async () => {
    const spec = tinySpec({ warmStart: { stepCount: 2 }, optimizer: { weightDecay: 0.1 } });
    const run = await begin(spec);
    const before = await weightsOf(run);
    const [head, query] = ['lm_head.weight', 'model.layers.1.self_attn.q_proj.weight'];
    const { vocabSize, hiddenSize } = spec.model;
    expect(before.get(query)).toEqual(
      float32(python(`new_matrix(17, "${query}", ${hiddenSize}, ${hiddenSize})`)),
    );
    expect(before.get(head)).toEqual(
      float32(python(`new_matrix(17, "${head}", ${vocabSize}, ${hiddenSize})`)),
    );

    await runLoop(run, (event) => event.kind === 'step');
    const after = await weightsOf(run);
    const { beta1, beta2, epsilon, weightDecay } = spec.optimizer;
    // The page does not compute the gradient, but the first moment contains it.
    const gradient = Array.from(after.get(`${query}.first_moment`)!, (moment) => moment / (1 - beta1));
    const settings = `1, ${new Schedule(spec).learningRateAt(0)}, ${beta1}, ${beta2}, ${epsilon}, ${weightDecay}`;
    const updated = python(
      `[adamw(w, g, 0, 0, ${settings}) for w, g in zip(${JSON.stringify([...before.get(query)!])}, ${JSON.stringify(gradient)})]`,
    ) as number[][];
    const largest = (name: string, place: number) =>
      Math.max(...Array.from(after.get(name)!, (value, i) => Math.abs(value - updated[i]![place]!)));
    expect(largest(query, 0)).toBeLessThan(1e-8);
    expect(largest(`${query}.second_moment`, 2)).toBeLessThan(1e-12);

    await runLoop(run, (event) => event.kind === 'plan');
    const layer = 'model.layers.0.mlp.down_proj';
    const { intermediateSize } = spec.model;
    expect((await weightsOf(run)).get(`${layer}.lora_A`)).toEqual(
      float32(python(`new_a(17, "${layer}", 0, ${intermediateSize}, 4)`)),
    );
    disposeRun(run);
  });

  it.each([1, 2])('finds the tokens of every sequence, by the data cut %i', async (cut) => {
    const { train } = await dataset();
    const batches = new Batches(train, { sequenceLength: 7, seed: 17, cut, endOfTextId: 256 });
    const count = 3 * batches.sequencesPerEpoch;
    const first = python(
      `[first_token(q, ${train.tokenCount}, 7, 17, ${cut}) for q in range(${count})]`,
    ) as number[];
    const tokens = train.read(0, train.tokenCount);
    const { inputs, targets } = await batches.read(0, count);
    const wanted = (ahead: number) =>
      first.flatMap((position) =>
        Array.from({ length: 7 }, (_, i) => tokens[(position + i + ahead) % train.tokenCount]),
      );
    expect([...inputs]).toEqual(wanted(0));
    expect([...targets]).toEqual(wanted(1));
  });

  it('knows the rate of every step', () => {
    const spec = tinySpec({ adapter: { cycleStepCount: 50, restartWarmupStepCount: 7 }, stepCount: 190 });
    const { warmStart, learningRate, adapter, stepCount } = spec;
    const { peak, warmupStepCount, minRatio } = learningRate;
    const shape = `${stepCount}, ${warmupStepCount}, ${minRatio}, ${adapter!.cycleStepCount}, ${adapter!.restartWarmupStepCount}`;
    const rates = python(`[${peak} * jagged_cosine(t, ${shape}) for t in range(${stepCount})]`) as number[];
    const schedule = new Schedule(spec);
    for (const [t, rate] of rates.entries())
      expect(Math.abs(schedule.learningRateAt(warmStart.stepCount + t) - rate)).toBeLessThan(1e-15);
    for (let t = 0; t < warmStart.stepCount; t++)
      expect(schedule.learningRateAt(t)).toBe(
        warmStart.learningRate * Math.min(1, (t + 1) / Math.max(1, warmStart.warmupStepCount)),
      );
  });

  it('drops the elements that a run drops, by both versions', () => {
    const layer = { name: 'model.layers.0.self_attn.k_proj', index: 1, inFeatures: 10 };
    const place = { seed: 17, step: 5, micro: 2, firstSequence: 40 };
    const [rows, time] = [6, 3];
    const masks = ([1, 2] as const).map((version) => {
      const mask = new Float32Array(rows * layer.inFeatures);
      dropoutMask(mask, { share: threeQuarters, place: { ...place, version } }, layer as never, time);
      return [...mask];
    });
    const decide = (words: string) => `[0 if word < 0.75 * 2**32 else 4 for word in ${words}]`;
    const drawn = `(lambda s: [s.word() for _ in range(60)])(Stream(17, "dropout", 5, 2, "${layer.name}"))`;
    expect(masks[0]).toEqual(python(decide(drawn)));
    expect(masks[1]).toEqual(
      python(decide('dropout_words(17, 40, 5, 1, 30) + dropout_words(17, 41, 5, 1, 30)')),
    );
    const words = new Uint32Array(4);
    philox(words, [1, 2, 3, 4], [5, 6]);
    expect([...words]).toEqual(python('philox((1, 2, 3, 4), (5, 6))'));
  });
});
