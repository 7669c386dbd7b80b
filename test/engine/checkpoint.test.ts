import {
  existsSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  beginRun,
  CheckpointCorrupt,
  CheckpointNoSpace,
  disposeRun,
  loadModelFromCheckpoint,
  saveCheckpoint,
  openDevice,
  verifyCheckpoint,
  type BeginRunOptions,
  type RunSpec,
  type TrainingEvent,
} from '@relora/engine';
import { readStoredRunSpec } from '@relora/engine/plan';
import { specHash } from '../../engine/dist/plan/specHash.js';
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

async function begin(spec: RunSpec, options: Partial<BeginRunOptions> = {}) {
  const device = await openDevice({ device: spec.device, precision: 'float32', threads: 2 });
  return beginRun({
    spec,
    device,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
    ...options,
  });
}

/** Wide enough for 8-bit moments: its embedding, head and base layers have at least 4096 weights. */
function wideSpec(changes: Parameters<typeof tinySpec>[0]): RunSpec {
  return tinySpec({ model: { hiddenSize: 64, intermediateSize: 96 }, adapter: { rank: 64 }, ...changes });
}

describe('a resumed run repeats the uninterrupted one bit for bit', () => {
  const native = tinySpec();
  const cases: { name: string; spec: RunSpec; stopAfter: number[] }[] = [
    {
      name: 'in the warm start, at its end, in a cycle, before and after a restart',
      spec: native,
      stopAfter: [3, 6, 9, 12, 13, 23],
    },
    {
      name: 'with dropout, micro-batches, trainable scales and pruned moments',
      spec: tinySpec({
        batch: { microBatchSequenceCount: 2 },
        adapter: { dropout: 0.1, trainableScale: true, momentReset: 'random', momentPruneRatio: 0.7 },
        optimizer: { weightDecay: 0.01 },
      }),
      stopAfter: [5, 14],
    },
    {
      name: 'with moments pruned at random where B learns at another rate',
      spec: tinySpec({ adapter: { bLearningRateRatio: 4, momentReset: 'random', momentPruneRatio: 0.5 } }),
      stopAfter: [8, 14],
    },
    {
      name: 'of full rank',
      spec: tinySpec({ kind: 'fullRank', adapter: null, stepCount: 8 }),
      stopAfter: [5],
    },
    {
      name: 'on the reference backend',
      spec: tinySpec({
        device: 'reference',
        warmStart: { stepCount: 1 },
        stepCount: 4,
        adapter: { cycleStepCount: 2, restartWarmupStepCount: 1, targetModules: ['q_proj', 'down_proj'] },
        evaluation: { finalTokenCount: 32 },
        batch: { sequenceLength: 16, sequenceCount: 2, microBatchSequenceCount: 1 },
        sample: { tokenCount: 1 },
      }),
      stopAfter: [2],
    },
    {
      name: 'with moments in eight bits',
      spec: wideSpec({ optimizer: { momentType: 'int8' } }),
      stopAfter: [4, 9, 14],
    },
  ];
  for (const { name, spec, stopAfter } of cases) {
    it(name, async () => {
      const straight = await begin(spec);
      const events = await runLoop(straight);
      const weights = await weightsOf(straight);
      disposeRun(straight);
      for (const step of stopAfter) {
        const resumed = await interrupted(begin, spec, step);
        expect(reported(resumed.events)).toEqual(reported(events));
        expect(await weightsOf(resumed.run)).toEqual(weights);
        disposeRun(resumed.run);
      }
    });
  }

  it('also when it was stopped between a restart and the step behind it', async () => {
    const spec = tinySpec();
    const straight = await begin(spec);
    const events = await runLoop(straight);
    const first = await begin(spec);
    const before = await runLoop(first, ({ kind }) => kind === 'restart');
    expect(before.at(-1)).toMatchObject({ kind: 'restart', step: 12 });
    const { path, step } = await saveCheckpoint(first);
    expect(step).toBe(12);
    const second = await begin(spec, { checkpointPath: path, runFolder: first.folder, attempt: 2 });
    expect(reported([...before, ...(await runLoop(second))])).toEqual(reported(events));
    expect(await weightsOf(second)).toEqual(await weightsOf(straight));
    [straight, first, second].forEach(disposeRun);
  });

  it('and reports everything once, wherever it is paused beside a restart with a checkpoint at the same step', async () => {
    const spec = tinySpec({
      warmStart: { stepCount: 2 },
      stepCount: 6,
      adapter: { cycleStepCount: 4 },
      evaluation: { everyStepCount: 6 },
      checkpoint: { everyStepCount: 2 },
    });
    const straight = await begin(spec);
    const events = await runLoop(straight);
    const pauses = [...events.keys()].filter((index) => {
      const event = events[index]!;
      return 'step' in event && (event.step === 2 || event.step === 5 || event.step === 6);
    });
    expect(pauses.length).toBeGreaterThan(5);
    for (const pause of pauses) {
      let run = await begin(spec);
      const runFolder = run.folder;
      const all: TrainingEvent[] = [];
      // Paused, and again right after the next event.
      for (const [attempt, length] of [
        [2, pause + 1],
        [3, pause + 2],
      ] as const) {
        let seen = all.length;
        all.push(...(await runLoop(run, () => ++seen >= length)));
        const { path } = await saveCheckpoint(run);
        disposeRun(run);
        run = await begin(spec, { checkpointPath: path, runFolder, attempt });
      }
      all.push(...(await runLoop(run)));
      expect(reported(all)).toEqual(reported(events));
      expect(await weightsOf(run)).toEqual(await weightsOf(straight));
      disposeRun(run);
    }
    disposeRun(straight);
  });

  it('and says so when it cannot, because another backend resumes it', async () => {
    const first = await begin(tinySpec());
    await runLoop(first, ({ kind }) => kind === 'step');
    const { path } = await saveCheckpoint(first);
    const second = await begin(tinySpec({ device: 'reference' }), { checkpointPath: path });
    const events = await runLoop(second, ({ kind }) => kind === 'step');
    expect(events[0]).toMatchObject({ kind: 'warning', reason: 'RESUMED_ON_OTHER_BACKEND' });
    [first, second].forEach(disposeRun);
  });

  it('but not with another specification', async () => {
    const first = await begin(tinySpec());
    const { path } = await saveCheckpoint(first);
    const other = begin(tinySpec({ seed: 18 }), { checkpointPath: path });
    await expect(other).rejects.toMatchObject({ reason: 'RUN_MISMATCH' });
    const sameWeights = await begin(tinySpec({ checkpoint: { keepCount: 9 }, priority: 5 }), {
      checkpointPath: path,
    });
    [first, sameWeights].forEach(disposeRun);
  });

  it('of a release without the settings that came later', async () => {
    const named = tinySpec({
      warmStart: { stepCount: 0 },
      streams: { dataCut: 1, dropout: 1, fullRankWarmup: 1 },
      baseWeightsHash: 'path',
    });
    // With the spelling of the data set that the release hashed.
    const spec = { ...named, dataset: 'datasets/licen\u0063e' };
    const { recomputation: _, streams: _streams, baseWeightsHash: _hash, ...before } = spec;
    const { momentType: _moments, ...optimizer } = spec.optimizer;
    const { graph: _graph, ...adapter } = spec.adapter!;
    const stored = readStoredRunSpec(JSON.stringify({ ...before, optimizer, adapter }));
    expect(stored).toEqual(spec);
    // The hash of this specification in the first release.
    const hashOf = (spec: RunSpec) => specHash(spec, null);
    expect(hashOf(stored)).toBe('e198cf1c65449c020302628423b1db370452648e0e9d15631b03802ca06fba52');
    expect(hashOf({ ...stored, streams: { ...stored.streams, dataCut: 2 } })).not.toBe(hashOf(stored));
    expect(hashOf(tinySpec({ ...stored, recomputation: 'blocks' }))).toBe(hashOf(stored));
    expect(hashOf(tinySpec({ ...stored, adapter: { graph: 'merged' } }))).not.toBe(hashOf(stored));
    expect(hashOf(tinySpec({ ...stored, optimizer: { momentType: 'int8' } }))).not.toBe(hashOf(stored));
    expect(hashOf({ ...stored, replicas: 2 })).not.toBe(hashOf(stored));
    expect(hashOf({ ...stored, reductionType: 'bfloat16' })).not.toBe(hashOf(stored));
    expect(hashOf({ ...stored, headPrecision: 'int8' })).not.toBe(hashOf(stored));
    expect(hashOf({ ...stored, synchronization: 'everyCycle' })).not.toBe(hashOf(stored));
    expect(hashOf({ ...stored, replicas: 2, replicasMin: 1 })).toBe(hashOf({ ...stored, replicas: 2 }));
  });
});

describe('a checkpoint', () => {
  it('is one whole folder that its manifest describes', async () => {
    const run = await begin(tinySpec({ checkpoint: { everyStepCount: 9 } }));
    const events = await runLoop(run, ({ kind }) => kind === 'checkpoint');
    const saved = ofKind(events, 'checkpoint')[0]!;
    expect(saved.path).toBe(join(run.folder, 'checkpoints', 'step-00000009-1'));
    expect(readdirSync(join(run.folder, 'checkpoints'))).toEqual(['step-00000009-1']);
    expect(readdirSync(saved.path).sort()).toEqual([
      'adapters.safetensors',
      'base.safetensors',
      'manifest.json',
      'moments.safetensors',
      'shared.safetensors',
      'start.safetensors',
    ]);
    const { manifest, manifestSha256, sizeBytes } = await verifyCheckpoint(saved.path, saved);
    expect({ manifestSha256, sizeBytes }).toEqual({
      manifestSha256: saved.manifestSha256,
      sizeBytes: saved.sizeBytes,
    });
    expect(manifest).toMatchObject({
      formatVersion: 1,
      phase: 'adapter',
      progress: { nextStep: 9, restartCount: 0, trainedTokens: 9 * 128 },
      position: { seed: 17, firstSequence: 36 },
      optimizerStepCounts: { shared: 9, base: 0, adapter: 3 },
      backend: { name: 'native', precision: 'float32' },
    });
    disposeRun(run);
  });

  it('links the base while it is frozen, and writes it again after a restart', async () => {
    const run = await begin(tinySpec({ checkpoint: { everyStepCount: 2 } }));
    const inodes = new Map<number, bigint>();
    for (const { path, step } of ofKind(await runLoop(run), 'checkpoint')) {
      inodes.set(step, statSync(join(path, 'base.safetensors'), { bigint: true }).ino);
    }
    expect(inodes.get(8)).toBe(inodes.get(10));
    expect(inodes.get(12)).not.toBe(inodes.get(10)); // saved after the restart
    expect(inodes.get(14)).toBe(inodes.get(12));
    expect(inodes.get(16)).toBe(inodes.get(14));
    expect(inodes.get(2)).not.toBe(inodes.get(4));
    disposeRun(run);
  });

  it('survives the removal of those before it', async () => {
    const spec = tinySpec({ checkpoint: { everyStepCount: 2 } });
    const run = await begin(spec);
    const paths = ofKind(await runLoop(run), 'checkpoint').map(({ path }) => path);
    const folder = join(run.folder, 'checkpoints');
    const kept = paths.slice(-2);
    for (const path of paths.slice(0, -2)) rmSync(path, { recursive: true });
    for (const path of kept) await verifyCheckpoint(path);
    const resumed = await begin(spec, { checkpointPath: kept[0]!, runFolder: run.folder, attempt: 2 });
    await runLoop(resumed);
    expect(await weightsOf(resumed)).toEqual(await weightsOf(run));
    expect(existsSync(join(folder, 'step-00000024-2'))).toBe(true); // in addition to that of the first attempt, which is not overwritten
    [run, resumed].forEach(disposeRun);
  });

  it('of a step that is saved already is that one', async () => {
    const run = await begin(tinySpec({ checkpoint: { everyStepCount: 3 } }));
    const events = await runLoop(run, ({ kind }) => kind === 'checkpoint');
    expect((await saveCheckpoint(run)).path).toBe(ofKind(events, 'checkpoint')[0]!.path);
    disposeRun(run);
  });

  it('is not begun without the space for it, and the run continues', async () => {
    const run = await begin(tinySpec());
    await runLoop(run, ({ kind }) => kind === 'step');
    const saving = saveCheckpoint(run, { reserveBytes: Number.MAX_SAFE_INTEGER });
    await expect(saving).rejects.toThrow(CheckpointNoSpace);
    await expect(saving).rejects.toMatchObject({ reason: 'CHECKPOINT_NO_SPACE' });
    expect(readdirSync(join(run.folder, 'checkpoints'))).toEqual([]);
    const events = await runLoop(run, ({ kind }) => kind === 'step');
    expect(ofKind(events, 'step')[0]!.step).toBe(1);
    await saveCheckpoint(run);
    disposeRun(run);
  });

  it('gives the model that wrote it, merged', async () => {
    const run = await begin(tinySpec());
    await runLoop(run, (event) => event.kind === 'step' && event.step === 14);
    const { path } = await saveCheckpoint(run);
    const model = await loadModelFromCheckpoint(run.device, path);
    expect(model.adapterSettings).toBeNull();
    const ids = Int32Array.from(Buffer.from('Licensor shall mean'));
    const logitsOf = (each: typeof model) => each.logits(ids, 1, ids.length, { precision: 'float32' });
    const [expected, found] = [await logitsOf(run.model), await logitsOf(model)];
    found.forEach((value, i) => expect(Math.abs(value - expected[i]!)).toBeLessThan(1e-4));
    model.dispose();
    disposeRun(run);
  });
});

describe('a damaged checkpoint is refused, with the file and what is wrong', async () => {
  const damages: { name: string; file: string; damage: (path: string) => void; found: RegExp }[] = [
    {
      name: 'a flipped bit',
      file: 'base.safetensors',
      damage: (path) => flipBit(path),
      found: /should be of SHA-256 [0-9a-f]{64} but is of/,
    },
    {
      name: 'a lost end',
      file: 'moments.safetensors',
      damage: (path) => truncateSync(path, 100),
      found: /bytes long but is 100 bytes long/,
    },
    {
      name: 'no manifest',
      file: 'manifest.json',
      damage: (path) => truncateSync(path, 0),
      found: /should be JSON/,
    },
    {
      name: 'a manifest of a later format',
      file: 'manifest.json',
      damage: (path) =>
        writeFileSync(path, readFileSync(path, 'utf8').replace('"formatVersion": 1', '"formatVersion": 2')),
      found: /has format 2; this engine reads format 1/,
    },
    {
      name: 'a manifest that leads out of the folder',
      file: 'manifest.json',
      damage: (path) =>
        writeFileSync(path, readFileSync(path, 'utf8').replace('shared.safetensors', '../../secret')),
      found: /plain file names/,
    },
  ];
  it.each(damages)('$name', async ({ file, damage, found }) => {
    const run = await begin(tinySpec());
    const { path } = await saveCheckpoint(run);
    disposeRun(run);
    damage(join(path, file));
    await expect(verifyCheckpoint(path)).rejects.toThrow(found);
    await expect(begin(tinySpec(), { checkpointPath: path })).rejects.toThrow(found);
  });

  it('a manifest that is not the acknowledged one', async () => {
    const run = await begin(tinySpec());
    const { path, manifestSha256 } = await saveCheckpoint(run);
    disposeRun(run);
    const manifest = join(path, 'manifest.json');
    writeFileSync(manifest, readFileSync(manifest, 'utf8').replace('"restartCount": 0', '"restartCount": 1'));
    await verifyCheckpoint(path);
    const refused = verifyCheckpoint(path, { manifestSha256 });
    await expect(refused).rejects.toThrow(CheckpointCorrupt);
    await expect(refused).rejects.toMatchObject({ reason: 'CHECKPOINT_CORRUPT', file: 'manifest.json' });
  });
});

function flipBit(path: string): void {
  const bytes = readFileSync(path);
  bytes[bytes.length - 5]! ^= 1;
  writeFileSync(path, bytes);
}
