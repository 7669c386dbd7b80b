import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseJobSpec, type CompareJobsResponse, type Job, type Sweep } from '@relora/sdk';
import { expect, test } from 'vitest';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { cli } from './commandLine.js';

/** The page loads nothing from elsewhere, and every opened element is closed. */
function expectWholePage(html: string): void {
  expect(html).toMatch(/^<!doctype html>/);
  expect(html).not.toMatch(/https?:|<script|<link|@import|url\((?!#)|src=/);
  expect(html).not.toMatch(/NaN|Infinity|undefined/);
  for (const tag of ['svg', 'g', 'figure', 'table', 'tr', 'td', 'ul', 'div'])
    expect(html.split(`<${tag}>`).length + html.split(`<${tag} `).length - 2, tag).toBe(
      html.split(`</${tag}>`).length - 1,
    );
}

async function withData(spec: object, slots = '2') {
  const { address, client } = await realServer({ RELORA_SLOTS: slots });
  const folder = temporaryFolder();
  writeFileSync(join(folder, 'spec.json'), JSON.stringify(spec));
  await client.uploadDataset({
    datasetId: 'tiny-text',
    files: [{ content: tinyText(), fileName: 'tiny.txt' }],
    spec: { heldOutShare: 0.1 },
  });
  return { client, folder, relora: cli(folder, address) };
}

test('full-rank, ReLoRA and LoRA are queued by one command and compared by another', async () => {
  const { client, folder, relora } = await withData(tinySpec(20));
  const create = [
    'create',
    '--spec',
    'spec.json',
    '--kinds',
    'full-rank,relora,lora',
    '--seeds',
    '1',
    '--json',
  ];
  const created = await relora([...create, '--comparison', 'first']);
  expect(created).toMatchObject({ code: 0, errors: '' });
  const { jobs } = created.json()[0] as { jobs: { name: string }[] };
  expect(jobs).toHaveLength(3);
  // Repeating the command gives the same comparison.
  expect((await relora([...create, '--comparison', 'first'])).json()[0]).toMatchObject({
    jobs: jobs.map(({ name }) => ({ name })),
  });
  await Promise.all(jobs.map(async ({ name }) => await client.waitForJob(name)));

  const compared = await relora(['compare', '--label', 'comparison=first', '--json']);
  const comparison = compared.json()[0] as unknown as CompareJobsResponse;
  // The rates are defaults, so the comparison of the kinds depends on them.
  expect(comparison.warnings.map(({ reason }) => reason)).toEqual(['RATES_UNTUNED']);
  expect(comparison.jobs.map(({ displayName }) => displayName)).toEqual(
    ['full-rank', 'relora', 'lora'].map((kind) => `${kind}, seed 1`),
  );
  const firstLosses = comparison.jobs.map(
    ({ series }) => series.find(({ metric }) => metric === 'METRIC_EVALUATION_LOSS')!.points[0]!.last,
  );
  // Before training, all kinds with the same seed are the same model, evaluated on the same text.
  expect(new Set(firstLosses).size).toBe(1);
  for (const job of comparison.jobs) expect(job).toMatchObject({ step: 30, trainedTokens: 30 * 128 });

  const shown = await relora(['compare', '--label', 'comparison=first', '--html', 'report.html']);
  expect(shown).toMatchObject({ code: 0, errors: 'The report is in report.html.\n' });
  for (const line of [
    /^ held-out loss$/m,
    /^ ● full-rank, seed 1$/m,
    /^ {2}kind +JOB_KIND_FULL_RANK +JOB_KIND_RELORA +JOB_KIND_LORA$/m,
    /reference$/m,
  ])
    expect(shown.output).toMatch(line);
  const html = readFileSync(join(folder, 'report.html'), 'utf8');
  expectWholePage(html);
  expect(html.match(/<figure>/g)).toHaveLength(6);

  const [first, second] = jobs.map(({ name }) => name) as [string, string];
  const named = await relora(['compare', first, second, '--axis', 'seconds', '--metric', 'loss']);
  expect(named.output).toMatch(/^ training loss$/m);
  expect(await relora(['compare', first])).toMatchObject({ code: 3 });
  expect((await relora(['compare', first, '--label', 'a=b'])).code).toBe(2);
  expect((await relora(['compare', first, second, '--axis', 'miles'])).code).toBe(2);
});

test('the jobs of a comparison are of the kinds that are asked for, and each can be created', async () => {
  const { step_count: _, ...spec } = tinySpec(20);
  const { client, folder, relora } = await withData({ ...spec, token_count: 20 * 4 * 32 }, '1');
  // The jobs need not run: another one takes the only slot.
  await client.createJob(parseJobSpec(tinySpec(1_000_000)));
  const created = async (...flags: string[]) => {
    const { errors, json } = await relora(['create', '--spec', 'spec.json', ...flags, '--json']);
    expect(errors).toBe('');
    return (json()[0] as unknown as { jobs: Job[] }).jobs;
  };
  const shapes = (jobs: Job[]) => jobs.map(({ spec }) => [spec!.kind, spec!.seed, spec!.stepCount]);
  expect(shapes(await created('--seeds', '1,2'))).toEqual([
    ['JOB_KIND_RELORA', 1, 20],
    ['JOB_KIND_RELORA', 2, 20],
  ]);
  const { warm_start: _1, adapter: _2, ...full } = tinySpec(20);
  writeFileSync(join(folder, 'full.json'), JSON.stringify(full));
  expect(shapes(await created('--spec', 'full.json', '--kind', 'full-rank', '--seeds', '1'))).toEqual([
    ['JOB_KIND_FULL_RANK', 1, 20],
  ]);
  expect(shapes(await created('--kinds', 'full-rank,relora,lora'))).toEqual([
    ['JOB_KIND_FULL_RANK', 7, 30],
    ['JOB_KIND_RELORA', 7, 20],
    ['JOB_KIND_LORA', 7, 20],
  ]);
  // With --comparison alone, the same command gives the same job.
  const [alone] = await created('--comparison', 'alone');
  expect(alone!.labels).toEqual({ comparison: 'alone' });
  expect((await created('--comparison', 'alone')).map(({ name }) => name)).toEqual([alone!.name]);

  const cycles = ['--cycle', '6', '--cycle-growth', '1.5', '--full-rank-steps', '2', '--steps', '15'];
  const muon = await created('--kinds', 'full-rank,lora', ...cycles, '--optimizer', 'muon');
  expect(muon.map(({ spec }) => [spec!.optimizer?.fullRankOptimizer, spec!.warmStart?.optimizer])).toEqual([
    ['FULL_RANK_OPTIMIZER_MUON', undefined],
    ['FULL_RANK_OPTIMIZER_ADAMW', 'FULL_RANK_OPTIMIZER_MUON'],
  ]);

  // None is queued if the server refuses one.
  const queued = async () => {
    const names = [];
    for await (const { name } of client.listJobs()) names.push(name);
    return names;
  };
  const before = await queued();
  const invalid = { reason: 'JOB_SPEC_INVALID' };
  const good = parseJobSpec(tinySpec(20));
  await expect(client.createComparison(good, { seeds: [1, -1] })).rejects.toMatchObject(invalid);
  await expect(client.sweepLearningRate(good, { rates: [1e-3, 1e9] })).rejects.toMatchObject(invalid);
  expect(await queued()).toEqual(before);
});

test('a sweep finds the best rate, leaves out what diverged, and resumes where it was', async () => {
  const spec = {
    ...tinySpec(20),
    evaluation: { every_step_count: 0, token_count: 256, final_token_count: 256 },
  };
  const { client, folder, relora } = await withData(spec);
  const sweep = ['sweep', '--spec', 'spec.json', '--rates', '1e-5,1e-2,1', '--id', 'one'];
  const first = await relora([...sweep, '--html', 'sweep.html']);
  expect(first.code).toBe(0);
  expect(first.output).toMatch(/^ next: --kind relora --rank 4 --lr 1e-2$/m);
  expect(first.output).toMatch(/^ relora +4 +– +1e-2 +[\d.]+ +best +jobs\//m);
  expectWholePage(readFileSync(join(folder, 'sweep.html'), 'utf8'));

  const again = (await relora([...sweep, '--json'])).json()[0] as unknown as Sweep;
  const [variant] = again.variants;
  expect(variant!.runs.map(({ learningRate }) => learningRate)).toEqual([1e-5, 1e-2, 1]);
  expect(variant).toMatchObject({ best: { learningRate: 1e-2 }, isBestAtEdge: false });
  const jobs = [];
  for await (const job of client.listJobs({ labels: { sweep: 'one' } })) jobs.push(job);
  expect(jobs).toHaveLength(3);

  const edge = await client.sweepLearningRate(
    { dataset: 'datasets/tiny-text', ...(await client.getJob(jobs[0]!.name)).spec },
    { from: 1e-5, to: 1e-3, count: 2, kinds: ['JOB_KIND_RELORA', 'JOB_KIND_FULL_RANK'], scales: [2, 8] },
  );
  const found = edge.variants.map(({ kind, rank, scale, isBestAtEdge }) => [kind, rank, scale, isBestAtEdge]);
  expect(found).toEqual([
    ['JOB_KIND_RELORA', 4, 2, true],
    ['JOB_KIND_RELORA', 4, 8, true],
    ['JOB_KIND_FULL_RANK', 0, null, true],
  ]);
  const alphas = edge.variants.map(({ runs }) => runs.map(({ job }) => job.spec?.adapter?.alpha));
  expect(alphas).toEqual([
    [8, 8],
    [32, 32],
    [undefined, undefined],
  ]);
  expect((await relora(['sweep', '--spec', 'spec.json'])).errors).toContain('A sweep needs --rates');
  expect((await relora(['sweep', '--spec', 'spec.json', '--rates', '1', '--lr', '1'])).code).toBe(2);
});
