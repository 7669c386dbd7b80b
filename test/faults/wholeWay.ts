import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  ArtifactState,
  ExportFormat,
  JobState,
  parseJobSpec,
  type Artifact,
  type JobEvent,
  type ReloraClient,
} from '@relora/sdk';
import { expect } from 'vitest';
import { tinySpec, tinyText } from '../e2e/tinyJob.js';
import { patientMs, type Ends, type World } from './world.js';

/** Enough for a warm start and several merges; takes seconds. */
const stepCount = 60;

export interface Result {
  weights: string;
  gguf: string;
}

let isCounted = 0;

export interface Person {
  onJob?: (name: string) => void;
  /** Handles an error as its message says, and repeats the request; by default no error may reach the client. */
  insist?: Insist;
  /** Number of processes of the job. */
  replicas?: number;
  /** What the job learns. */
  text?: string;
}

export type Insist = <T>(what: () => Promise<T>) => Promise<T>;

/**
 * Everything that a person does with a job: upload, create, watch, export, download. Fails if anything that was acknowledged is lost,
 * duplicated, out of order or different from an undisturbed run.
 */
export async function wholeWay(
  world: World,
  ends: Ends,
  expected: Result | null,
  { onJob = () => {}, insist = async (what) => await what(), replicas = 1, text = tinyText() }: Person = {},
): Promise<Result> {
  const { client } = world;
  const dataset = await insist(async () => {
    const datasetId = `tiny-text-${isCounted++}`;
    const files = [{ content: text, fileName: 'tiny.txt' }];
    await client.uploadDataset({ datasetId, files });
    return `datasets/${datasetId}`;
  });
  const spec = parseJobSpec({ ...tinySpec(stepCount), dataset, replicas });
  const { name } = await insist(async () => await client.createJob(spec));
  onJob(name);
  const events = await watched(client, name, async ({ to }) => {
    // A job is paused without a request only if its disk failed.
    if (to === JobState.PAUSED) await insist(async () => await client.resumeJob(name));
  });
  const sequences = events.map(({ sequence }) => sequence);
  expect(sequences).toEqual(sequences.map((_, index) => index + 1));
  const { state, failure } = await insist(async () => await client.getJob(name));
  expect(state, failure?.message).toBe(JobState.SUCCEEDED);
  checkSteps(events);
  // The final journal equals what was seen before.
  expect(ofAnyStore(await watched(client, name))).toEqual(ofAnyStore(events));

  const folder = mkdtempSync(join(tmpdir(), 'relora-faults-'));
  ends.push(() => rmSync(folder, { recursive: true, force: true }));
  const download = async (artifact: Artifact, to: string) =>
    await insist(async () => await client.downloadArtifact(artifact.name, join(folder, to))); // verifies every hash
  const [made] = await insist(async () => await client.listArtifacts(name));
  // A disk may have failed when the job ended: then the weights are requested again.
  const artifact =
    made!.state === ArtifactState.READY
      ? made!
      : await exported(client, name, ExportFormat.HUGGING_FACE, insist);
  await download(artifact, 'weights');
  const weights = artifact.files.find(({ fileName }) => fileName.endsWith('.safetensors'))!.sha256;
  const gguf = await exported(client, name, ExportFormat.GGUF, insist);
  await download(gguf, 'gguf');
  const result = { weights, gguf: withoutName(join(folder, 'gguf', gguf.files[0]!.fileName), name) };
  if (expected !== null) expect(result).toEqual(expected);
  world.throwIfEnded();
  return result;
}

/** All events of a job to its end. */
async function watched(
  client: ReloraClient,
  name: string,
  onState: (change: { to: JobState }) => Promise<void> = async () => {},
): Promise<JobEvent[]> {
  let events: JobEvent[] = [];
  let before: JobEvent[] = [];
  for await (const event of client.watch(name, { deadlineMs: patientMs })) {
    if (event.kind === 'storeChanged') {
      // Another database answers, and all events are read again: it must include those seen before.
      before = events.length > before.length ? events : before;
      events = [];
      continue;
    }
    events.push(event);
    if (event.kind === 'state') await onState(event.state);
  }
  expect(ofAnyStore(events.slice(0, before.length))).toEqual(ofAnyStore(before));
  return events;
}

/** A failover changes the id of the store, and nothing else. */
function ofAnyStore(events: readonly JobEvent[]): JobEvent[] {
  return events.map((event) => ({ ...event, storeId: '' }));
}

async function exported(
  client: ReloraClient,
  name: string,
  format: ExportFormat,
  insist: Insist,
): Promise<Artifact> {
  return await insist(async () => {
    const pending = await client.exportWeights(name, { format });
    return await client.waitForArtifact(pending.name);
  });
}

/** Steps increase by one within an attempt, and attempts never decrease. */
function checkSteps(events: readonly JobEvent[]): void {
  let attempt = 0;
  let next: number | null = null;
  let reached = 0;
  for (const event of events) {
    if (event.attempt > 0) {
      expect(event.attempt).toBeGreaterThanOrEqual(attempt);
      if (event.attempt > attempt) next = null;
      attempt = event.attempt;
    }
    if (event.kind !== 'step') continue;
    if (next !== null) expect(event.step.step).toBe(next);
    next = event.step.step + 1;
    reached = Math.max(reached, next);
  }
  expect(reached).toBeGreaterThanOrEqual(stepCount); // the last attempt may have had only the export to do
}

/** A GGUF file contains the name of its job. */
function withoutName(path: string, job: string): string {
  const bytes = readFileSync(path);
  const text = Buffer.from(job.replace('jobs/', ''));
  for (let at = bytes.indexOf(text); at >= 0; at = bytes.indexOf(text)) bytes.fill(0, at, at + text.length);
  return createHash('sha256').update(bytes).digest('hex');
}
