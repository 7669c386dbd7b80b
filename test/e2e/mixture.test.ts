import { JobSpec, type JobEvent } from '@relora/sdk/contract';
import { ReloraClient, createBundle, replayBundle } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { realServer } from '../sdk/realServer.js';
import { tinySpec } from './tinyJob.js';
import { clientsOf, uploadText, watchUntil, weightsSha256, type Clients } from './watchedJob.js';

async function mixtureServer() {
  const { server } = await realServer({ RELORA_RETRY_DELAY_SECONDS: '0.01' });
  const clients = clientsOf(server.grpcAddress);
  const lines = (word: string, count: number) =>
    Array.from({ length: count }, (_, index) => `${word} ${index * 7919} ${word}.\n`).join('');
  await uploadText(clients, 'alpha', lines('alpha', 900), { trainedBpe: { vocabularySize: 300 } });
  // All use the tokenizer of the first.
  await uploadText(clients, 'beta-text', lines('beta', 500), { dataset: 'datasets/alpha' });
  await uploadText(clients, 'gamma', lines('gamma', 300), { dataset: 'datasets/alpha' });
  return { server, clients };
}

const mixture = [
  { dataset: 'datasets/alpha', weight: 3 },
  { dataset: 'datasets/beta-text', weight: 1 },
  { dataset: 'datasets/gamma', weight: 0 },
];

async function createMixed({ training }: Clients, seed: number): Promise<string> {
  const { dataset: _, ...rest } = tinySpec(30);
  const { job } = await training.createJob({ spec: JobSpec.fromJSON({ ...rest, mixture, seed }) });
  return job!.name;
}

test('a job trains on a mixture, says how it does on each data set, and is the same after a kill', async () => {
  const { server, clients } = await mixtureServer();
  const undisturbed = await createMixed(clients, 7);
  const events: JobEvent[] = [];
  await watchUntil(clients, undisturbed, events, () => false);
  const { job } = await clients.training.getJob({ name: undisturbed });
  expect(job!.state).toBe('JOB_STATE_SUCCEEDED');
  expect(job!.spec).toMatchObject({ dataset: 'datasets/alpha', mixture });
  const last = events.flatMap(({ evaluation }) => evaluation ?? []).at(-1)!;
  expect(last.datasets.map(({ dataset }) => dataset)).toEqual(mixture.map(({ dataset }) => dataset));
  expect(last.loss).toBeCloseTo((3 * last.datasets[0]!.loss + last.datasets[1]!.loss) / 4, 10);
  expect(last.datasets[2]!.epochs).toBe(0);
  // 160 sequences of 32 tokens each, three quarters of them from the first.
  const { dataset: alpha } = await clients.datasets.getDataset({ name: 'datasets/alpha' });
  const inPass = Math.floor((alpha!.train!.tokenCount - 1) / 32);
  expect(Math.abs(last.datasets[0]!.epochs - 120 / inPass)).toBeLessThan(3 / inPass);
  expect(job!.progress!.datasets).toEqual(last.datasets);
  expect(job!.execution!.datasets.map(({ dataset }) => dataset)).toEqual(
    mixture.map(({ dataset }) => dataset),
  );

  const killed = await createMixed(clients, 7);
  const seen: JobEvent[] = [];
  await watchUntil(clients, killed, seen, ({ checkpoint }) => (checkpoint?.step ?? 0) >= 20);
  const pid = server.trainerPid(killed.replace('jobs/', ''));
  if (pid !== undefined) process.kill(pid, 'SIGKILL');
  // All of its data sets are in use.
  const inUse = clients.datasets.deleteDataset({ name: 'datasets/gamma' });
  await expect(inUse).rejects.toThrow(/Data set gamma cannot be deleted: jobs\/.* needs it/);
  await watchUntil(clients, killed, seen, () => false);
  expect(await weightsSha256(clients, killed)).toBe(await weightsSha256(clients, undisturbed));

  const scraped = await (await fetch(`http://${server.httpAddress}/metrics`)).text();
  expect(scraped).toMatch(
    /relora_job_dataset_evaluation_loss\{job_id="[^"]+",dataset="datasets\/gamma"\} \d/,
  );
  expect(scraped).toMatch(/relora_job_dataset_epochs\{job_id="[^"]+",dataset="datasets\/beta-text"\} 0\.\d/);
  const compared = await clients.training.compareJobs({ names: [undisturbed, killed] });
  expect(compared.jobs[1]!.evaluationDatasets).toEqual(last.datasets);

  const client = new ReloraClient({ address: server.grpcAddress });
  onTestFinished(() => client.close());
  const report = await replayBundle(client, await createBundle(client, undisturbed));
  expect(report).toMatchObject({ isIdentical: true, firstDifferingStep: null });

  await clients.datasets.deleteDataset({ name: 'datasets/gamma' });
  await expect(createMixed(clients, 8)).rejects.toThrow('Data set gamma is deleted');
  const lost = uploadText(clients, 'delta', 'Some text.', { dataset: 'datasets/gamma' });
  await expect(lost).rejects.toThrow('header.spec.tokenizer.dataset');
});
