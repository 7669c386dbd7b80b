import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll } from 'vitest';
import { Dataset, prepareDataset } from '@relora/engine/data';
import type { StoredValues } from '../../engine/dist/io/safetensors.js';
import {
  defaultRunSpec,
  disposeRun,
  saveCheckpoint,
  trainLoop,
  type BeginRunOptions,
  type GivenSpec,
  type RunSpec,
  type TrainingEvent,
  type TrainingRun,
} from '@relora/engine';

/** Folders for one test file, deleted after it. */
export function temporaryFolders(): () => string {
  const folders: string[] = [];
  afterAll(() => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true })));
  return () => {
    const folder = mkdtempSync(join(tmpdir(), 'relora-engine-'));
    folders.push(folder);
    return folder;
  };
}

/** The base of all test specifications. */
const tiny = {
  kind: 'relora',
  model: {
    vocabSize: 257,
    hiddenSize: 32,
    intermediateSize: 48,
    numHiddenLayers: 2,
    numAttentionHeads: 4,
    numKeyValueHeads: 2,
    maxPositionEmbeddings: 64,
  },
  dataset: 'datasets/license',
  warmStart: { stepCount: 6, learningRate: 3e-3, warmupStepCount: 3 },
  adapter: { rank: 4, alpha: 8, cycleStepCount: 6, restartWarmupStepCount: 2 },
  stepCount: 18,
  learningRate: { peak: 6e-3, schedule: 'jaggedCosine', warmupStepCount: 2 },
  batch: { sequenceLength: 32, sequenceCount: 4, microBatchSequenceCount: 4 },
  precision: 'float32',
  seed: 17,
  evaluation: { everyStepCount: 0, tokenCount: 128, finalTokenCount: 512 },
  checkpoint: { everyStepCount: 0 },
  sample: { prompt: 'The ', tokenCount: 4 },
  device: 'native',
} satisfies GivenSpec;

/** A model that learns within seconds, with a warm start and three cycles; `changes` are merged into the parts. */
export function tinySpec(changes: GivenSpec = {}): RunSpec {
  const merged = Object.entries(changes).map(([key, value]) => {
    const before: unknown = tiny[key as keyof typeof tiny];
    const isPart = typeof value === 'object' && value !== null && !Array.isArray(value);
    return [key, isPart ? { ...(before as object | undefined), ...value } : value];
  });
  return defaultRunSpec({ ...tiny, ...(Object.fromEntries(merged) as GivenSpec) });
}

/** Runs the loop to its end, or until `stop` returns true for an event; like a server it takes that event, then aborts. */
export async function runLoop(
  run: TrainingRun,
  stop: (event: TrainingEvent) => boolean | Promise<boolean> = () => false,
): Promise<TrainingEvent[]> {
  const abort = new AbortController();
  const events: TrainingEvent[] = [];
  for await (const event of trainLoop(run, abort.signal)) {
    events.push(event);
    if (await stop(event)) abort.abort();
  }
  return events;
}

export function ofKind<K extends TrainingEvent['kind']>(events: TrainingEvent[], kind: K) {
  return events.filter((event): event is Extract<TrainingEvent, { kind: K }> => event.kind === kind);
}

/**
 * A run's events without values that depend on clock or system, and without those that each attempt repeats. The timing of graphs depends
 * on the clock: the event `plan`, and the warning that they were slower than planned.
 */
export function reported(events: TrainingEvent[]) {
  return events
    .filter(({ kind }) => kind !== 'checkpoint' && kind !== 'plan')
    .filter((event) => event.kind !== 'warning' || event.reason !== 'GRAPHS_SLOWER_THAN_PLANNED')
    .map((event) => ({ ...event, seconds: 0, stepSeconds: 0, residentBytes: 0 }));
}

/** Saves after `stopAfter` steps, starts a new run from that checkpoint, and runs it to its end. */
export async function interrupted(
  begin: (spec: RunSpec, options?: Partial<BeginRunOptions>) => Promise<TrainingRun>,
  spec: RunSpec,
  stopAfter: number,
) {
  const first = await begin(spec);
  const before = await runLoop(first, (event) => event.kind === 'step' && event.step === stopAfter - 1);
  const { path } = await saveCheckpoint(first);
  disposeRun(first);
  const second = await begin(spec, { checkpointPath: path, runFolder: first.folder, attempt: 2 });
  const events = [...before, ...(await runLoop(second))];
  return { run: second, events };
}

/** Copies of every weight, adapter and moment of a run, by name. */
export async function weightsOf(run: TrainingRun): Promise<Map<string, Float32Array>> {
  const weights = new Map<string, Float32Array>();
  for (const parameter of run.model.parameters.values())
    weights.set(parameter.name, await run.model.valuesOf(parameter));
  for (const { name, read } of run.optimizer.state())
    weights.set(name, Float32Array.from((await read()) as StoredValues));
  return weights;
}

const license = fileURLToPath(new URL('../../LICENSE', import.meta.url));

/** The same texts, with a letter as end-of-text token, so that many "documents" begin in each sequence. */
export function endedByLetters(dataset: Dataset): Dataset {
  return new Proxy(dataset, {
    get(target, key) {
      if (key === 'tokenizer') return { ...target.tokenizer, endOfTextId: 'e'.charCodeAt(0) };
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? (value.bind(target) as unknown) : value;
    },
  });
}

/**
 * A data set of bytes from English text that is always available, a tenth of it held out; one per test file.
 * @param length characters to use; default all
 */
export function licenseDataset(newFolder: () => string, length?: number): () => Promise<Dataset> {
  let dataset: Promise<Dataset> | undefined;
  afterAll(async () => (await dataset)?.close());
  return () => (dataset ??= prepareLicense(newFolder(), length));
}

async function prepareLicense(folder: string, length?: number): Promise<Dataset> {
  const path = join(folder, 'LICENSE');
  writeFileSync(path, readFileSync(license, 'utf8').slice(0, length));
  const outputFolder = join(folder, 'dataset');
  await prepareDataset(
    {
      files: [{ path, name: 'LICENSE', format: 'text', split: 'auto' }],
      outputFolder,
      tokenizer: { kind: 'bytes' },
      textField: 'text',
      heldOutShare: 0.1,
      seed: 1,
    },
    () => {},
    new AbortController().signal,
  );
  return Dataset.open(outputFolder, { verify: true });
}
