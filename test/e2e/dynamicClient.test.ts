import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { callOnce, dynamicClient, reflect, type ReflectionVersion } from './reflectedClient.js';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec, tinyText } from './tinyJob.js';

interface Event {
  sequence: string;
  kind: string;
  final: boolean;
}
interface ArtifactFile {
  file_name: string;
  sha256: string;
}

test.each<ReflectionVersion>(['v1', 'v1alpha'])(
  'a client that knows nothing but reflection %s runs a job from JSON to its weights',
  async (version) => {
    const server = await startServerProcess(temporaryFolder());
    const { serviceNames, descriptorSet } = await reflect(server.grpcAddress, version);
    expect(serviceNames).toEqual(
      expect.arrayContaining(['relora.v1.TrainingService', 'grpc.health.v1.Health']),
    );
    const open = (name: string) => dynamicClient(descriptorSet, name, server.grpcAddress);

    const health = open('grpc.health.v1.Health');
    const { status } = await callOnce<{ status: string }>(health, 'Check', {
      service: 'relora.v1.TrainingService',
    });
    expect(status).toBe('SERVING');

    const text = Buffer.from(tinyText());
    const datasets = open('relora.v1.DatasetService');
    await new Promise<void>((resolve, reject) => {
      const call = datasets.UploadDataset!((error: Error | null) => (error ? reject(error) : resolve()));
      call.write({
        header: {
          dataset_id: 'tiny-text',
          files: [{ file_name: 'tiny.txt', size_bytes: text.length, sha256: sha256(text) }],
          spec: { tokenizer: { bytes: {} }, held_out_share: 0.1 },
        },
      });
      call.write({ chunk: { file_index: 0, offset_bytes: 0, data: text } });
      call.end();
    });
    await expect
      .poll(
        async () =>
          (
            await callOnce<{ dataset: { state: string } }>(datasets, 'GetDataset', {
              name: 'datasets/tiny-text',
            })
          ).dataset.state,
        { interval: 50 },
      )
      .toBe('DATASET_STATE_READY');

    const training = open('relora.v1.TrainingService');
    const request = JSON.parse(JSON.stringify({ spec: tinySpec(30), job_id: 'from-json' })) as object;
    const { job } = await callOnce<{ job: { name: string } }>(training, 'CreateJob', request);
    expect(job.name).toBe('jobs/from-json');

    const events: Event[] = [];
    for await (const message of training.WatchJob!({ name: job.name })) {
      events.push((message as unknown as { event: Event }).event); // grpc-js types what it reads as bytes
    }
    const stored = events.filter(({ kind }) => kind !== 'heartbeat');
    expect(stored.map(({ sequence }) => Number(sequence))).toEqual(stored.map((_, index) => index + 1));
    expect(stored.at(-1)).toMatchObject({ final: true, state: { to: 'JOB_STATE_SUCCEEDED' } });
    expect(stored.filter(({ kind }) => kind === 'restart').length).toBeGreaterThan(0);

    const artifacts = open('relora.v1.ArtifactService');
    const { artifacts: listed } = await callOnce<{ artifacts: { name: string; files: ArtifactFile[] }[] }>(
      artifacts,
      'ListArtifacts',
      { parent: job.name },
    );
    const weights = listed[0]!.files.find(({ file_name }) => file_name.endsWith('.safetensors'))!;
    const parts: Buffer[] = [];
    for await (const message of artifacts.DownloadArtifact!({
      name: listed[0]!.name,
      file_name: weights.file_name,
    })) {
      parts.push((message as unknown as { data: Buffer }).data);
    }
    expect(sha256(Buffer.concat(parts))).toBe(weights.sha256);
  },
);

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}
