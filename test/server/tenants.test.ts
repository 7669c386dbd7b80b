import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ClientError, Metadata, Status, type CallOptions } from 'nice-grpc';
import { UsageDimension } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { actingFor, nobody, type Authenticate } from '../../server/dist/access/principal.js';
import { accessRules, type AccessRules } from '../../server/dist/api/accessRules.js';
import type { Role } from '../../server/dist/roles.js';
import { readDescriptors } from '../../server/dist/grpc/descriptors.js';
import { readFileSync } from 'node:fs';
import { jobSpec, openApi, sha256, uploadOf, type Api } from './apiServer.js';
import { readyDataset } from './parts.js';

/** The token `ROLE@TENANT` authenticates as that role and tenant. */
const authenticate: Authenticate = async ({ authorization, tenant: named }) => {
  const [, role, tenant] = /^Bearer (viewer|trainer|operator)@(.*)$/.exec(authorization ?? '') ?? [];
  if (role === undefined) return nobody;
  return actingFor({ name: `${role} of ${tenant}`, tenant: tenant!, role: role as Role }, named);
};

const as = (who: string, forTenant?: string): CallOptions => ({
  metadata: Metadata({
    authorization: `Bearer ${who}`,
    ...(forTenant === undefined ? {} : { 'relora-tenant': forTenant }),
  }),
});

interface Names {
  webhook: string;
  job: string;
  dataset: string;
  weights: string;
  artifact: string;
}

type Call = (api: Api, names: Names, options: CallOptions) => Promise<unknown> | AsyncIterable<unknown>;
type Calls = { [Service in keyof AccessRules]: Record<keyof AccessRules[Service], Call> };

const webhookSecret = `whsec_${Buffer.alloc(32, 1).toString('base64')}`;
const model = Buffer.from('{}');
const file = { fileName: 'config.json', sizeBytes: 2, sha256: sha256(model) };
async function* uploadedWeights(weightsId: string) {
  yield { header: { weightsId, files: [file, { ...file, fileName: 'model.safetensors' }] } };
}

async function* importOf(job: string) {
  const files = [{ fileName: 'job.jsonl', sizeBytes: 2, sha256: sha256(model) }];
  yield { header: { archive: { formatVersion: 1, job, files, sizeBytes: 2 } } };
}

/** Every method of the contract, called with the given names; a missing method does not compile. */
const calls: Calls = {
  'relora.v1.TrainingService': {
    createJob: ({ training }, { dataset }, options) =>
      training.createJob({ spec: jobSpec('', { dataset }), validateOnly: true }, options),
    estimateJob: ({ training }, { artifact }, options) =>
      training.estimateJob({ spec: jobSpec('', { model: { baseWeights: { artifact } } }) }, options),
    getJob: ({ training }, { job: name }, options) => training.getJob({ name }, options),
    explainJob: ({ training }, { job: name }, options) => training.explainJob({ name }, options),
    listJobs: ({ training }, _, options) => training.listJobs({}, options),
    listRestarts: ({ training }, { job }, options) => training.listRestarts({ parent: job }, options),
    watchJob: ({ training }, { job: name }, options) => training.watchJob({ name }, options),
    watchJobs: ({ training }, { job }, options) =>
      training.watchJobs({ names: [job], untilAllEnded: true }, options),
    getMetricHistory: ({ training }, { job: name }, options) => training.getMetricHistory({ name }, options),
    compareJobs: ({ training }, { job }, options) =>
      training.compareJobs({ names: [job, 'jobs/another'] }, options),
    updateJob: ({ training }, { job: name }, options) =>
      training.updateJob({ name, labels: { a: 'b' } }, options),
    getJobLog: ({ training }, { job: name }, options) => training.getJobLog({ name }, options),
    exportJob: ({ training }, { job: name }, options) => training.exportJob({ name }, options),
    // As for weights: another tenant's job of that name must not conflict.
    importJob: ({ training }, { job }, options) => training.importJob(importOf(job), options),
    pauseJob: ({ training }, { job: name }, options) => training.pauseJob({ name }, options),
    resumeJob: ({ training }, { job: name }, options) => training.resumeJob({ name }, options),
    cancelJob: ({ training }, { job: name }, options) => training.cancelJob({ name }, options),
    deleteJob: ({ training }, { job: name }, options) => training.deleteJob({ name }, options),
    undeleteJob: ({ training }, { job: name }, options) => training.undeleteJob({ name }, options),
    forkJob: ({ training }, { job: name }, options) => training.forkJob({ name, spec: jobSpec() }, options),
    restartJob: ({ training }, { job: name }, options) =>
      training.restartJob({ name, spec: jobSpec() }, options),
  },
  'relora.v1.ArtifactService': {
    getArtifact: ({ artifacts }, { artifact: name }, options) => artifacts.getArtifact({ name }, options),
    listArtifacts: ({ artifacts }, { job }, options) => artifacts.listArtifacts({ parent: job }, options),
    downloadArtifact: ({ artifacts }, { artifact: name }, options) =>
      artifacts.downloadArtifact({ name, fileName: 'config.json' }, options),
    exportWeights: ({ artifacts }, { job }, options) => artifacts.exportWeights({ job }, options),
    deleteArtifact: ({ artifacts }, { artifact: name }, options) =>
      artifacts.deleteArtifact({ name }, options),
  },
  'relora.v1.DatasetService': {
    getDataset: ({ datasets }, { dataset: name }, options) => datasets.getDataset({ name }, options),
    listDatasets: ({ datasets }, _, options) => datasets.listDatasets({}, options),
    previewDataset: ({ datasets }, { dataset: name }, options) => datasets.previewDataset({ name }, options),
    uploadDataset: ({ datasets }, { weights }, options) => {
      const spec = { tokenizer: { huggingFace: { weights } } };
      return datasets.uploadDataset(uploadOf(Buffer.from('text'), undefined, { spec }), options);
    },
    deleteDataset: ({ datasets }, { dataset: name }, options) => datasets.deleteDataset({ name }, options),
    undeleteDataset: ({ datasets }, { dataset: name }, options) =>
      datasets.undeleteDataset({ name }, options),
  },
  'relora.v1.ModelService': {
    generateText: ({ model }, { artifact }, options) => model.generateText({ model: artifact }, options),
    evaluateModel: ({ model }, { artifact, dataset }, options) =>
      model.evaluateModel({ model: artifact, datasets: [dataset] }, options),
  },
  'relora.v1.ServerService': {
    getServerInfo: async ({ server }, _, options) => {
      const { presets, startTime: _time, ...info } = await server.getServerInfo({}, options);
      return { ...info, presets: presets.length };
    },
    getDiskUse: async ({ server }, _, options) => {
      const { freeBytes: _free, storeBytes: _store, ...use } = await server.getDiskUse({}, options);
      return use;
    },
    getQuota: async ({ server }, _, options) => {
      const { tenant: _own, ...quota } = await server.getQuota({}, options);
      return quota;
    },
    getUsage: ({ server }, _, options) =>
      server.getUsage({ groupBy: [UsageDimension.JOB, UsageDimension.TENANT] }, options),
    listAuditEntries: ({ server }, _, options) => server.listAuditEntries({ caller: 'nobody' }, options),
    scrub: ({ server }, { job: name }, options) => server.scrub({ name }, options),
  },
  'relora.v1.WeightsService': {
    getWeights: ({ weights }, { weights: name }, options) => weights.getWeights({ name }, options),
    listWeights: ({ weights }, _, options) => weights.listWeights({}, options),
    deleteWeights: ({ weights }, { weights: name }, options) => weights.deleteWeights({ name }, options),
    // Another tenant's weights of that id must neither conflict nor be continued.
    uploadWeights: ({ weights }, { weights: name }, options) =>
      weights.uploadWeights(uploadedWeights(name.replace('weights/', '')), options),
  },
  'relora.v1.WebhookService': {
    // Another tenant's webhook of that name must not conflict.
    createWebhook: async ({ webhooks }, { webhook }, options) => {
      const webhookId = webhook.replace('webhooks/', '');
      const url = 'https://hooks.example.com/';
      const created = await webhooks.createWebhook({ webhookId, url, secret: webhookSecret }, options);
      await webhooks.deleteWebhook({ name: webhook }, options);
      return created.webhook!.name;
    },
    listWebhooks: ({ webhooks }, _, options) => webhooks.listWebhooks({}, options),
    testWebhook: ({ webhooks }, { webhook: name }, options) => webhooks.testWebhook({ name }, options),
    listWebhookDeliveries: ({ webhooks }, { webhook: parent }, options) =>
      webhooks.listWebhookDeliveries({ parent }, options),
    resendWebhookDeliveries: ({ webhooks }, { webhook: name }, options) =>
      webhooks.resendWebhookDeliveries({ name }, options),
    deleteWebhook: ({ webhooks }, { webhook: name }, options) => webhooks.deleteWebhook({ name }, options),
  },
};

const theirs: Names = {
  webhook: 'webhooks/secret-webhook',
  job: 'jobs/secret-job',
  dataset: 'datasets/secret-text',
  weights: 'weights/secret-weights',
  artifact: 'jobs/secret-job/artifacts/model-1',
};
const absent: Names = {
  webhook: 'webhooks/absent-webhook',
  job: 'jobs/absent-job',
  dataset: 'datasets/absent-text',
  weights: 'weights/absent-weights',
  artifact: 'jobs/absent-job/artifacts/model-1',
};

const methods = Object.entries(calls).flatMap(([service, ofService]) =>
  Object.entries(ofService).map(([method, call]) => ({
    name: `${service.replace('relora.v1.', '')}/${method}`,
    call,
    role: (accessRules as unknown as Record<string, Record<string, Role>>)[service]![method]!,
  })),
);

/** How a call ends for its client, with placeholders for the two names that it was called with. */
async function outcomeOf(call: Call, api: Api, names: Names, options: CallOptions): Promise<string> {
  const result = async (): Promise<unknown> => {
    try {
      const made = call(api, names, options);
      if (!(Symbol.asyncIterator in made)) return await made;
      const all: unknown[] = [];
      for await (const message of made) all.push(message);
      return all;
    } catch (error) {
      if (!(error instanceof ClientError)) throw error;
      return `${Status[error.code]}: ${error.details}`;
    }
  };
  const text = JSON.stringify(await result(), (_, value: unknown) =>
    typeof value === 'bigint' ? String(value) : value,
  );
  return text.replace(/(secret|absent)-(job|text|weights|webhook)/g, 'some-$2');
}

/** The tenant acme has one of everything; nobody else has anything. */
async function apiOfAcme(): Promise<Api> {
  const api = await openApi({}, { authenticate });
  const { parts } = api;
  for (const tenant of ['acme', 'other']) await readyDataset(parts, `${tenant}.text`, tenant);
  await readyDataset(parts, 'acme.secret-text', 'acme');
  await parts.supervisor.start();
  const spec = jobSpec('', { dataset: theirs.dataset });
  await api.training.createJob({ jobId: 'secret-job', spec }, as('trainer@acme'));
  for await (const { event } of api.training.watchJob({ name: theirs.job }, as('viewer@acme')))
    if (event!.final) break;
  await parts.weights.register({
    weightsId: 'acme.secret-weights',
    tenant: 'acme',
    displayName: '',
    files: [{ fileName: 'config.json', sizeBytes: 2, sha256: 'b'.repeat(64) }],
  });
  const url = 'https://hooks.example.com/';
  await api.webhooks.createWebhook({ webhookId: 'secret-webhook', url }, as('trainer@acme'));
  return api;
}

describe('every method of the contract', () => {
  it('is here', () => {
    const contract = readFileSync(new URL('../../server/src/generated/relora.binpb', import.meta.url));
    const paths = [...readDescriptors(contract).requests.keys()].map((path) => path.toLowerCase());
    const here = methods.map(({ name }) => `/relora.v1.${name}`.toLowerCase());
    expect(here.sort()).toEqual(paths.sort());
  });

  // One server for all: calls that would change something of acme's come last, made by its own trainer.
  it('refuses callers without a token and roles below its rule, and treats names of another tenant as absent', async () => {
    const api = await apiOfAcme();
    const below: Record<Role, string[]> = {
      viewer: [],
      trainer: ['viewer'],
      operator: ['viewer', 'trainer'],
    };
    for (const { name, call, role } of methods) {
      expect(await outcomeOf(call, api, theirs, {}), name).toMatch(/^"UNAUTHENTICATED/);
      for (const tooLow of below[role])
        expect(await outcomeOf(call, api, theirs, as(`${tooLow}@acme`)), name).toMatch(/^"PERMISSION_DENIED/);
      for (const stranger of ['operator@default', 'trainer@other', 'viewer@other']) {
        const [foreign, missing] = [
          await outcomeOf(call, api, theirs, as(stranger)),
          await outcomeOf(call, api, absent, as(stranger)),
        ];
        expect(foreign, `${name} by ${stranger}`).toBe(missing);
        // Reveals nothing of it, not even that the tenant exists; only operators see disk use.
        if (name === 'ServerService/getDiskUse' && stranger === 'operator@default') continue;
        expect(foreign, `${name} by ${stranger}`).not.toContain('acme');
      }
    }
    // The owner still finds everything, without a trace of how the store separates tenants.
    for (const { name, call, role } of methods.filter(({ role }) => role === 'viewer')) {
      const own = await outcomeOf(call, api, theirs, as(`${role}@acme`));
      expect(own, name).not.toMatch(/acme\.|PERMISSION_DENIED|UNAUTHENTICATED/);
    }
    for (const method of ['getJob', 'watchJob', 'getMetricHistory', 'listRestarts'] as const) {
      const call = calls['relora.v1.TrainingService'][method];
      expect(await outcomeOf(call, api, theirs, as('viewer@acme')), method).not.toContain('NOT_FOUND');
      expect(await outcomeOf(call, api, theirs, as('operator@default', 'acme')), method).not.toContain(
        'NOT_FOUND',
      );
    }
    const list = calls['relora.v1.TrainingService'].listJobs;
    expect(await outcomeOf(list, api, theirs, as('viewer@acme'))).toContain('jobs/some-job');
    expect(await outcomeOf(list, api, theirs, as('viewer@other'))).not.toContain('jobs/some-job');
  });
});

/** Request fields that contain a name. */
const namingFields: Record<string, Call> = Object.fromEntries([
  ...Object.entries<(names: Names) => object>({
    mixture: ({ dataset }) => ({ mixture: [{ dataset: 'datasets/text' }, { dataset, weight: 1 }] }),
    evaluation: ({ dataset }) => ({ evaluations: [{ name: 'other', dataset }] }),
    'omitted document': ({ dataset }) => ({
      omittedDocuments: [{ dataset, firstToken: 0, tokenCount: 1 }],
    }),
    'base weights': ({ weights }) => ({ model: { baseWeights: { weights } } }),
    'weights of an artifact': ({ artifact }) => ({ model: { baseWeights: { artifact } } }),
  }).map(([name, fields]): [string, Call] => [
    `${name} of a job`,
    ({ training }, names, options) =>
      training.createJob({ spec: jobSpec('', fields(names)), validateOnly: true }, options),
  ]),
  ...Object.entries<(names: Names) => object>({
    base: ({ dataset: base }) => ({ base }),
    tokenizer: ({ dataset }) => ({ spec: { tokenizer: { dataset } } }),
  }).map(([name, fields]): [string, Call] => [
    `${name} of a data set`,
    ({ datasets }, names, options) =>
      datasets.uploadDataset(uploadOf(Buffer.from('text'), undefined, fields(names)), options),
  ]),
  ['a job to evaluate', ({ model }, { job }, options) => model.evaluateModel({ model: job }, options)],
  ['a job to write text', ({ model }, { job }, options) => model.generateText({ model: job }, options)],
  ...(['dataset', 'weights'] as const).map((kind): [string, Call] => [
    `${kind} to scrub`,
    ({ server }, names, options) => server.scrub({ name: names[kind] }, options),
  ]),
]);

describe('two tenants', () => {
  it('cannot name anything of each other in any field', async () => {
    const api = await apiOfAcme();
    for (const [name, call] of Object.entries(namingFields)) {
      const [foreign, missing] = [
        await outcomeOf(call, api, theirs, as('trainer@other')),
        await outcomeOf(call, api, absent, as('trainer@other')),
      ];
      expect(foreign, name).toBe(missing);
      expect(foreign, name).not.toContain('acme');
    }
  });

  it('cannot name each other by a header that comes twice, or in another spelling', async () => {
    const api = await apiOfAcme();
    const list = calls['relora.v1.TrainingService'].listJobs;
    for (const tenants of [
      ['acme'],
      ['other', 'acme'],
      ['acme', 'other'],
      ['other, acme'],
      [' acme'],
      ['ACME'],
    ])
      for (const role of ['viewer', 'trainer']) {
        const metadata = Metadata({ authorization: `Bearer ${role}@other`, 'Relora-Tenant': tenants });
        const outcome = await outcomeOf(list, api, theirs, { metadata });
        expect(outcome, tenants.join(' and ')).toMatch(/^"(PERMISSION_DENIED|INVALID_ARGUMENT)|"jobs":\[\]/);
      }
    // Of two tokens only the first counts, and the caller never gets the rights of both.
    const metadata = Metadata({ authorization: ['Bearer viewer@other', 'Bearer operator@acme'] });
    const outcome = await outcomeOf(list, api, theirs, { metadata });
    expect(outcome).toMatch(/^"(UNAUTHENTICATED|PERMISSION_DENIED)|"jobs":\[\]/);
  });

  it('may use the same names and request ids for different things', async () => {
    const api = await apiOfAcme();
    const requestId = '00000000-0000-4000-8000-000000000001';
    const make = async (who: string) =>
      await api.training.createJob({ jobId: 'same-name', requestId, spec: jobSpec() }, as(who));
    const [first, second] = [await make('trainer@acme'), await make('trainer@other')];
    expect([first.job!.name, second.job!.name]).toEqual(['jobs/same-name', 'jobs/same-name']);
    // A retry gets its own tenant's job.
    expect((await make('trainer@acme')).job!.createTime).toEqual(first.job!.createTime);
    const { jobs } = await api.training.listJobs({}, as('viewer@other'));
    expect(jobs.map(({ name }) => name)).toEqual(['jobs/same-name']);
    expect(readdirSync(join(api.parts.dataFolder, 'jobs'))).toEqual(
      expect.arrayContaining(['acme.secret-job']) as string[],
    );
  });

  it('cannot use page tokens of each other', async () => {
    const api = await apiOfAcme();
    for (let index = 0; index < 2; index++)
      await api.training.createJob({ spec: jobSpec() }, as('trainer@acme'));
    const { nextPageToken } = await api.training.listJobs({ pageSize: 1 }, as('viewer@acme'));
    expect(nextPageToken).not.toBe('');
    const stolen = api.training.listJobs({ pageSize: 1, pageToken: nextPageToken }, as('viewer@other'));
    await expect(stolen).rejects.toMatchObject({ code: Status.INVALID_ARGUMENT });
  });

  it('cannot reach each other by any spelling of a name', async () => {
    const api = await apiOfAcme();
    for (const name of [
      'jobs/acme.secret-job',
      'jobs/../jobs/acme.secret-job',
      'jobs/acme%2Esecret-job',
      'jobs/ACME.secret-job',
    ]) {
      const refused = api.training.getJob({ name }, as('viewer@other'));
      await expect(refused, name).rejects.toMatchObject({ code: Status.INVALID_ARGUMENT });
    }
    const dataset = 'datasets/acme.secret-text';
    const job = api.training.createJob({ spec: jobSpec('', { dataset }) }, as('trainer@other'));
    await expect(job).rejects.toMatchObject({ code: Status.INVALID_ARGUMENT });
    const named = api.training.createJob({ jobId: 'acme.job', spec: jobSpec() }, as('trainer@other'));
    await expect(named).rejects.toMatchObject({ code: Status.INVALID_ARGUMENT });
  });

  it('have jobs that train on their own data sets of one name', async () => {
    const api = await apiOfAcme();
    const { job } = await api.training.createJob({ spec: jobSpec() }, as('trainer@other'));
    for await (const { event } of api.training.watchJob({ name: job!.name }, as('viewer@other')))
      if (event!.final) break;
    const { job: ended } = await api.training.getJob({ name: job!.name }, as('viewer@other'));
    expect(ended!.spec!.dataset).toBe('datasets/text');
    const row = await api.parts.db
      .selectFrom('jobs')
      .innerJoin('job_datasets', 'job_datasets.job_id', 'jobs.id')
      .select(['dataset_id', 'name'])
      .where('tenant', '=', 'other')
      .executeTakeFirstOrThrow();
    expect(row).toMatchObject({ dataset_id: 'other.text', name: job!.name.replace('jobs/', '') });
    // A data set can be deleted although a job of another tenant uses one of the same name.
    await api.datasets.deleteDataset({ name: 'datasets/secret-text' }, as('trainer@acme'));
  });
});
