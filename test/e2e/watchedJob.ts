import { createHash } from 'node:crypto';
import {
  ArtifactServiceDefinition,
  DatasetServiceDefinition,
  DatasetState,
  JobSpec,
  TrainingServiceDefinition,
  type DeepPartial,
  type JobEvent,
  type TokenizerSpec,
} from '@relora/sdk/contract';
import { createChannel, createClient, type Channel } from 'nice-grpc';
import { expect, onTestFinished } from 'vitest';
import { tinySpec, tinyText } from './tinyJob.js';

/** Clients of one server, closed after the test. */
export function clientsOf(address: string) {
  const channel: Channel = createChannel(address);
  onTestFinished(() => channel.close());
  return {
    training: createClient(TrainingServiceDefinition, channel),
    datasets: createClient(DatasetServiceDefinition, channel),
    artifacts: createClient(ArtifactServiceDefinition, channel),
  };
}

export type Clients = ReturnType<typeof clientsOf>;

/** Uploads the tiny text and waits until it is ready. */
export async function uploadTinyText(clients: Clients): Promise<void> {
  await uploadText(clients, 'tiny-text', tinyText());
}

/** Uploads a text, of which a tenth is held out, and waits until it is ready. */
export async function uploadText(
  { datasets }: Clients,
  datasetId: string,
  text: string,
  tokenizer: DeepPartial<TokenizerSpec> = { bytes: {} },
): Promise<void> {
  const data = Buffer.from(text);
  const sha256 = createHash('sha256').update(data).digest('hex');
  async function* messages() {
    yield {
      header: {
        datasetId,
        files: [{ fileName: 'tiny.txt', sizeBytes: data.length, sha256 }],
        spec: { tokenizer, heldOutShare: 0.1 },
      },
    };
    yield { chunk: { fileIndex: 0, offsetBytes: 0, data } };
  }
  await datasets.uploadDataset(messages());
  const state = async () => (await datasets.getDataset({ name: `datasets/${datasetId}` })).dataset?.state;
  await expect.poll(state, { interval: 50 }).toBe(DatasetState.READY);
}

export async function createTinyJob({ training }: Clients, stepCount: number): Promise<string> {
  const { job } = await training.createJob({ spec: JobSpec.fromJSON(tinySpec(stepCount)) });
  return job!.name;
}

/**
 * Collects a job's further events, each once and without gaps in the sequence, until a condition holds or the job's last event. Rejects if
 * the watch breaks before.
 */
export async function watchUntil(
  { training }: Clients,
  name: string,
  events: JobEvent[],
  isEnough: (event: JobEvent) => boolean,
): Promise<void> {
  const afterSequence = events.at(-1)?.sequence ?? 0;
  for await (const { event } of training.watchJob({ name, afterSequence })) {
    if (event === undefined || event.heartbeat !== undefined) continue;
    expect(event.sequence).toBe((events.at(-1)?.sequence ?? 0) + 1);
    events.push(event);
    if (isEnough(event)) return;
  }
}

/** SHA-256 of the job's downloaded weights. */
export async function weightsSha256({ artifacts }: Clients, jobName: string): Promise<string> {
  const listed = await artifacts.listArtifacts({ parent: jobName });
  const artifact = listed.artifacts[0]!;
  const file = artifact.files.find(({ fileName }) => fileName.endsWith('.safetensors'))!;
  const hash = createHash('sha256');
  for await (const { data } of artifacts.downloadArtifact({
    name: artifact.name,
    fileName: file.fileName,
  })) {
    hash.update(data);
  }
  const sha256 = hash.digest('hex');
  expect(sha256).toBe(file.sha256);
  return sha256;
}

/** States of the job in order, from its events. */
export function statesOf(events: readonly JobEvent[]): string[] {
  return events.flatMap(({ state }) => (state === undefined ? [] : [state.to]));
}
