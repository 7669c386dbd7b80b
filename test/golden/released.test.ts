import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { ExportFormat, parseBundle, parseJobSpec, ReloraClient, replayBundle, type Job } from '@relora/sdk';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { unpackSdk } from '../sdk/unpackSdk.js';
import { expected, released, releasedFolder, type Hashes } from './releasedFolder.js';
import { startServerProcess } from '../e2e/serverProcess.js';
import { temporaryFolder, tinyText } from '../e2e/tinyJob.js';

let client: ReloraClient;
let dataFolder: string;
const cleanUps: (() => unknown)[] = [];

beforeAll(async () => {
  const folder = releasedFolder();
  cleanUps.push(folder.remove);
  dataFolder = folder.dataFolder;
  // Otherwise the bits would depend on the processor.
  const settings = {
    RELORA_INSTRUCTION_SET: 'portable',
    RELORA_DEVICE: 'native',
    RELORA_SLOTS: '2',
    RELORA_ALLOWED_FOLDERS: folder.baseWeights, // as when its job with a path was created
  };
  const server = await startServerProcess(dataFolder, settings, (stop) => cleanUps.push(stop));
  client = new ReloraClient({ address: server.grpcAddress });
  cleanUps.push(() => client.close());
});
afterAll(async () => {
  for (const cleanUp of cleanUps.reverse()) await cleanUp();
});

describe('a data folder of 0.1.0', () => {
  it('has its data sets, the failed one with its reason', async () => {
    const found: typeof expected.datasets = {};
    for await (const { name, state, failure, manifestSha256 } of client.listDatasets())
      found[name] = { state, manifestSha256, reason: failure?.reason ?? '' };
    expect(found).toEqual(expected.datasets);
  });

  it('has its jobs, those that are paused where they were paused', async () => {
    const found: string[] = [];
    for await (const { name, state, progress } of client.listJobs()) {
      const id = name.replace('jobs/', '');
      found.push(id);
      const { pausedAtStep } = expected.jobs[id]!;
      if (pausedAtStep === undefined) continue;
      expect({ id, state, step: progress!.step }).toEqual({
        id,
        state: 'JOB_STATE_PAUSED',
        step: pausedAtStep,
      });
    }
    expect(found.sort()).toEqual(Object.keys(expected.jobs).sort());
  });

  it('gives the first job or export to a request that is repeated after the upgrade', async () => {
    const { create, restart, export: exported } = expected.requestIds;
    const created = await client.createJob(parseJobSpec(expected.queuedSpec), {
      jobId: 'queued',
      requestId: create,
    });
    expect(created.name).toBe('jobs/queued');
    const forked = await client.forkJob(
      'jobs/finished',
      { stepCount: 24 },
      { jobId: 'restarted', requestId: restart },
    );
    expect(forked.name).toBe('jobs/restarted');
    const options = { format: ExportFormat.PEFT, requestId: exported };
    expect(expected.exports).toHaveProperty([(await client.exportWeights('jobs/finished', options)).name]);
  });

  it('takes the rest of an upload that was cut short', async () => {
    const contents = [
      'One fox.\n'.repeat(100),
      'The quick brown fox jumps over the lazy dog.\n'.repeat(10_000),
    ];
    const sent: number[] = [];
    const dataset = await client.uploadDataset({
      datasetId: 'half',
      files: contents.map((content) => ({ content })),
      onProgress: ({ phase, ratio }) => phase === 'uploading' && sent.push(ratio * (900 + 450_000)),
    });
    expect(dataset.state).toBe('DATASET_STATE_READY');
    // Existing data counts as sent: the first progress is that of the first new piece, which is all that was missing.
    expect(sent).toEqual([900 + 450_000]);
  });

  it('is finished with the weights and losses that 0.1.0 itself came to', async () => {
    for (const [id, { pausedAtStep }] of Object.entries(expected.jobs))
      if (pausedAtStep !== undefined) await client.resumeJob(`jobs/${id}`);
    for (const [id, wanted] of Object.entries(expected.jobs)) {
      const job = await client.waitForJob(`jobs/${id}`);
      expect({ id, ...(await resultOf(job)) }).toEqual({ id, ...resultWanted(wanted) });
      // Its path to the base weights was different, and the path is part of the hash.
      if (id !== 'queued-at-path') expect(job.execution!.specSha256).toBe(wanted.specSha256);
    }
  });

  it('says of a step that the job asks to omit that it is omitted, and not skipped', async () => {
    const steps: Record<string, number[]> = { omitted: [], skipped: [] };
    for await (const event of client.watch('jobs/paused'))
      if (event.kind === 'step')
        for (const word of ['omitted', 'skipped'] as const)
          if (event.step[word]) steps[word]!.push(event.step.step);
    // The first two are events of 0.1.0, in which they are both.
    expect(steps).toEqual({ omitted: [30, 31, 120, 121, 122, 123, 124], skipped: [] });
  });

  it('has its pending exports made', async () => {
    const found: typeof expected.exports = {};
    for (const name of Object.keys(expected.exports))
      found[name] = hashesOf((await client.waitForArtifact(name)).files);
    expect(found).toEqual(expected.exports);
  });

  it('replays its bundle to identical weights', async () => {
    const bundle = parseBundle(JSON.parse(readFileSync(join(released, 'bundle.json'), 'utf8')));
    const report = await replayBundle(client, bundle);
    expect(report).toMatchObject({ isIdentical: true, firstDifferingStep: null });
    // Its job followed the rules of 0.1.0; new ones may follow others.
    expect((await client.getJob(report.job)).spec!.streams).toEqual({
      dataCut: 1,
      dropout: 1,
      fullRankWarmup: 1,
    });
    expect(report.files.map(({ fileName }) => fileName)).toContain('hugging_face/model.safetensors');
  });
});

describe('the SDK of 0.1.0', () => {
  it('works against this server', async () => {
    const folder = temporaryFolder();
    unpackSdk(join(released, 'relora-sdk-0.1.0.tgz'), folder);
    const entry = pathToFileURL(join(folder, 'node_modules/@relora/sdk/dist/index.js')).href;
    const sdk = (await import(/* @vite-ignore */ entry)) as { ReloraClient: typeof ReloraClient };
    expect(sdk.ReloraClient).not.toBe(ReloraClient);
    const old = new sdk.ReloraClient({ address: client.address });
    try {
      await useAll(old, folder);
    } finally {
      old.close();
    }
  });
});

/** Everything done with the SDK: upload data, watch, pause and resume a job, start another from its checkpoint, download weights. */
async function useAll(old: ReloraClient, folder: string): Promise<void> {
  const repeated = { jobId: 'restarted', requestId: expected.requestIds.restart };
  expect((await old.restartJob('jobs/finished', { stepCount: 24 }, repeated)).name).toBe('jobs/restarted');

  const dataset = await old.uploadDataset({ datasetId: 'new-text', files: [{ content: tinyText() }] });
  const { spec } = await old.getJob('jobs/finished');
  const job = await old.createJob({ ...spec!, dataset: dataset.name, skippedSteps: [{ first: 5, last: 6 }] });
  const kinds = new Set<string>();
  const omitted: number[] = [];
  await old.waitForJob(job.name, {
    onEvent: (event) => {
      kinds.add(event.kind);
      if (event.kind === 'step' && event.step.omitted) omitted.push(event.step.step);
    },
  });
  kinds.delete('warning'); // one of them depends on the load of the machine
  expect([...kinds].sort()).toEqual([
    'artifact',
    'checkpoint',
    'evaluation',
    'plan',
    'restart',
    'state',
    'step',
  ]);
  expect(omitted.at(-1)).toBe(6); // a span's step event has the number of its last step
  const restarts = [];
  for await (const { event } of old.listRestarts(job.name)) restarts.push(event!.restart);
  expect(restarts).toEqual([1, 2]);

  const again = await old.restartJob(job.name, { stepCount: 24 });
  expect(again.origin).toMatchObject({ job: job.name, step: 16 });
  await old.pauseJob(again.name);
  await old.resumeJob(again.name);
  await old.waitForJob(again.name);
  const compared = await old.compareJobs([job.name, again.name]);
  expect(compared.jobs.map(({ name }) => name)).toEqual([job.name, again.name]);
  const paths = await old.downloadArtifact(again.name, join(folder, 'weights'));
  expect(paths.some((path) => path.endsWith('model.safetensors'))).toBe(true);
  const weights = await old.uploadWeights({ from: join(folder, 'weights') });
  await old.deleteWeights(weights.name);
  expect((await old.serverInfo()).presets.length).toBeGreaterThan(0);
}

async function resultOf({ name, origin }: Job) {
  const losses: (number | null)[] = [];
  for await (const event of client.watch(name))
    if (event.kind === 'step')
      losses[event.step.step] = Number.isFinite(event.step.loss) ? event.step.loss : null;
  const firstStep = losses.findIndex((loss) => loss !== undefined);
  const artifacts: Record<string, Hashes> = {};
  for (const artifact of await client.listArtifacts(name))
    if (!(artifact.name in expected.exports)) artifacts[artifact.name] = hashesOf(artifact.files);
  return { artifacts, firstStep, losses: losses.slice(firstStep), ...(origin && { origin }) };
}

function resultWanted({ artifacts, firstStep, losses, origin }: (typeof expected.jobs)[string]) {
  return { artifacts, firstStep, losses, ...(origin && { origin }) };
}

/** Hashes of the weights; the other files contain the version that wrote them. */
function hashesOf(files: readonly { fileName: string; sha256: string }[]): Hashes {
  const weights = files.filter(({ fileName }) => /\.(safetensors|gguf)$/.test(fileName));
  return Object.fromEntries(weights.map(({ fileName, sha256 }) => [fileName, sha256]));
}
