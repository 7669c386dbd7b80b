import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { JobSpec, type JobEvent } from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { realServer } from '../sdk/realServer.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';
import { clientsOf, watchUntil, weightsSha256 } from './watchedJob.js';

/** A server with short texts, and with pairs of which only completions are learned. */
async function serverWithDocuments() {
  const { server, client } = await realServer({ RELORA_RETRY_DELAY_SECONDS: '0.01' });
  const folder = temporaryFolder();
  const upload = async (datasetId: string, rows: object[], spec: object) => {
    const path = join(folder, `${datasetId}.jsonl`);
    writeFileSync(path, rows.map((row) => JSON.stringify(row)).join('\n'));
    await client.uploadDataset({
      datasetId,
      files: [{ path }],
      spec: { tokenizer: { bytes: {} }, heldOutShare: 0.1, ...spec },
    });
  };
  const rows = (of: (index: number) => object) => Array.from({ length: 400 }, (_, index) => of(index));
  // About ten tokens each: several begin in every sequence of 32.
  await upload(
    'texts',
    rows((i) => ({ text: `${i} lines` })),
    {},
  );
  await upload(
    'pairs',
    rows((i) => ({ ask: `${i}?`, say: `it is ${i % 7}` })),
    {
      promptField: 'ask',
      completionField: 'say',
    },
  );
  return { server, client, clients: clientsOf(server.grpcAddress) };
}

const mixture = [
  { dataset: 'datasets/texts', weight: 2 },
  { dataset: 'datasets/pairs', weight: 1 },
];

test('a job with masked documents over merges has the same bits after a kill, and others than without masks', async () => {
  const { server, client, clients } = await serverWithDocuments();
  const create = async (maskDocuments: boolean): Promise<string> => {
    const { dataset: _, batch, checkpoint, ...rest } = tinySpec(240);
    const spec = JobSpec.fromJSON({
      ...{ ...rest, mixture, batch: { ...batch, mask_documents: maskDocuments } },
      checkpoint: { ...checkpoint, keep_count: 5 },
    });
    return (await client.createJob(spec)).name;
  };
  const ended = async (name: string, events: JobEvent[] = []) => {
    await watchUntil(clients, name, events, () => false);
    expect((await client.getJob(name)).state).toBe('JOB_STATE_SUCCEEDED');
    return { sha256: await weightsSha256(clients, name), events };
  };
  const lossesOf = (events: readonly JobEvent[]) => events.flatMap(({ step }) => (step ? [step.loss] : []));

  const [plain, masked] = [await create(false), await create(true)];
  const [seeing, undisturbed] = [await ended(plain), await ended(masked)];
  expect((await client.getJob(masked)).spec?.batch?.maskDocuments).toBe(true);
  expect(undisturbed.sha256).not.toBe(seeing.sha256);
  expect(lossesOf(undisturbed.events)[0]).not.toBe(lossesOf(seeing.events)[0]);
  expect(undisturbed.events.filter(({ restart }) => restart !== undefined).length).toBeGreaterThan(1);

  const killed = await create(true);
  const seen: JobEvent[] = [];
  await watchUntil(clients, killed, seen, ({ checkpoint }) => (checkpoint?.step ?? 0) >= 20);
  const pid = server.trainerPid(killed.replace('jobs/', ''));
  expect(pid).toBeDefined();
  process.kill(pid!, 'SIGKILL');
  const resumed = await ended(killed, seen);
  expect((await client.getJob(killed)).attempt).toBe(2);
  expect(resumed.sha256).toBe(undisturbed.sha256);

  // A fork keeps the masks, and may omit documents in addition.
  const omittedDocuments = [{ dataset: 'datasets/texts', firstToken: 40, tokenCount: 200 }];
  const fork = await client.forkJob(masked, { omittedDocuments }, { checkpointStep: 220 });
  const forked = await ended(fork.name);
  expect((await client.getJob(fork.name)).spec?.batch?.maskDocuments).toBe(true);
  expect(forked.sha256).not.toBe(undisturbed.sha256);
});
