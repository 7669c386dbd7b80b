import { JobState, parseJobSpec, ReloraClient } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { startServerProcess } from '../e2e/serverProcess.js';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';

const outageMs = 3000;

test('every method holds while the server is away for three seconds and started again', async () => {
  const dataFolder = temporaryFolder();
  const settings = { RELORA_SLOTS: '2', RELORA_WEBHOOK_NETWORKS: '127.0.0.1' };
  const first = await startServerProcess(dataFolder, settings);
  // Sixty parallel calls, some of which start processes, may exceed the default deadline on a busy machine.
  const client = new ReloraClient({ address: first.grpcAddress, deadlineMs: 600_000 });
  onTestFinished(() => client.close());

  const files = [{ content: tinyText(), fileName: 'tiny.txt' }];
  const { name: dataset } = await client.uploadDataset({ datasetId: 'tiny-text', files });
  const short = parseJobSpec(tinySpec(20));
  const long = parseJobSpec({ ...tinySpec(100_000), checkpoint: { every_step_count: 100 } });
  const done = (await client.createJob(short)).name;
  await client.waitForJob(done);
  const model = temporaryFolder();
  await client.downloadArtifact(done, model);
  const moved = temporaryFolder();
  await client.exportJob(done, moved);
  const { name: weights } = await client.uploadWeights({ from: model, weightsId: 'first' });
  const { name: oldWeights } = await client.uploadWeights({ from: model });
  const [artifact] = await client.listArtifacts(done);
  const running = (await client.createJob(long)).name;
  const paused = (await client.createJob(long)).name;
  await expect.poll(async () => (await client.getJob(running)).progress?.step ?? 0).toBeGreaterThan(0);
  await client.pauseJob(paused);
  const [unwantedJob, missedJob, otherJob] = [
    await client.createJob(short),
    await client.createJob(short),
    await client.createJob(short),
  ];
  for (const { name } of [unwantedJob, missedJob, otherJob]) await client.waitForJob(name);
  // Of a job that is not exported as a whole meanwhile, since this would end that export.
  const spare = (await client.exportWeights(otherJob.name)).name;
  await client.waitForArtifact(spare);
  await client.deleteJob(missedJob.name);
  const [unwanted, missed] = [await client.uploadDataset({ files }), await client.uploadDataset({ files })];
  await client.deleteDataset(missed.name);

  // Nothing listens at the first address, which is a valid test result.
  const [{ webhook: hook }, { webhook: unwantedHook }] = [
    await client.createWebhook('http://127.0.0.1:9/'),
    await client.createWebhook('http://127.0.0.1:9/'),
  ];

  const collected = async <T>(found: AsyncIterable<T>) => {
    const all: T[] = [];
    for await (const each of found) all.push(each);
    return all;
  };
  const calls: Partial<Record<keyof ReloraClient, () => Promise<unknown>>> = {
    createJob: () => client.createJob(short, { jobId: 'made-in-the-dark' }),
    validateJob: () => client.validateJob(short),
    estimateJob: () => client.estimateJob(short),
    getJob: () => client.getJob(done),
    listJobs: () => collected(client.listJobs()),
    watch: () => collected(client.watch(done)),
    watchJobs: () => collected(client.watchJobs({ names: [done], untilAllEnded: true })),
    waitForJob: () => client.waitForJob(done),
    pauseJob: () => client.pauseJob(running),
    resumeJob: () => client.resumeJob(paused),
    cancelJob: async () => {
      const { name } = await client.createJob(long);
      return await client.cancelJob(name);
    },
    explainJob: () => client.explainJob(done),
    jobLog: () => collected(client.jobLog(done)),
    updateJob: () => client.updateJob(running, { learningRateFactor: 0.5 }),
    deleteJob: () => client.deleteJob(unwantedJob.name),
    undeleteJob: () => client.undeleteJob(missedJob.name),
    forkJob: () => client.forkJob(done, { stepCount: 30 }),
    restartJob: () => client.restartJob(done, { stepCount: 40 }),
    listRestarts: () => collected(client.listRestarts(done)),
    getMetricHistory: () => client.getMetricHistory(done),
    compareJobs: () => client.compareJobs([done, running]),
    createComparison: () => client.createComparison(short, { seeds: [1] }),
    sweepLearningRate: () => client.sweepLearningRate(short, { rates: [1e-3] }),
    exportWeights: () => client.exportWeights(done),
    getArtifact: () => client.getArtifact(artifact!.name),
    waitForArtifact: () => client.waitForArtifact(artifact!.name),
    deleteArtifact: () => client.deleteArtifact(spare),
    scrub: () => collected(client.scrub({ name: done })),
    listArtifacts: () => client.listArtifacts(done),
    downloadArtifact: () => client.downloadArtifact(artifact!.name, temporaryFolder()),
    exportJob: () => client.exportJob(done, temporaryFolder()),
    exportJobFiles: async () => {
      for await (const { content } of client.exportJobFiles(done)) await collected(content);
    },
    importJob: () => client.importJob(moved, { jobId: 'moved-job' }),
    uploadDataset: () => client.uploadDataset({ files }),
    uploadWeights: () => client.uploadWeights({ from: model }),
    getWeights: () => client.getWeights(weights),
    listWeights: () => collected(client.listWeights()),
    deleteWeights: () => client.deleteWeights(oldWeights),
    getDataset: () => client.getDataset(dataset),
    listDatasets: () => collected(client.listDatasets()),
    deleteDataset: () => client.deleteDataset(unwanted.name),
    undeleteDataset: () => client.undeleteDataset(missed.name),
    previewDataset: () => client.previewDataset(dataset),
    generate: () => collected(client.generate(artifact!.name, { prompt: 'Line', tokenCountMax: 4 })),
    evaluate: () => client.evaluate(artifact!.name, { datasets: [dataset] }),
    serverInfo: () => client.serverInfo(),
    diskUse: () => client.diskUse(),
    quota: () => client.quota(),
    usage: () => collected(client.usage()),
    createWebhook: () => client.createWebhook('https://hooks.example.com/'),
    listWebhooks: () => collected(client.listWebhooks()),
    testWebhook: () => client.testWebhook(hook.name),
    listWebhookDeliveries: () => collected(client.listWebhookDeliveries(hook.name)),
    resendWebhookDeliveries: () => client.resendWebhookDeliveries(hook.name),
    deleteWebhook: () => client.deleteWebhook(unwantedHook.name),
    listAuditEntries: () => collected(client.listAuditEntries()),
  };
  // Ensures that new methods are tested here too.
  const methods = Object.getOwnPropertyNames(ReloraClient.prototype);
  const internal = ['constructor', 'close', 'findArtifact', 'patience', 'repeatedUntilBegun', 'exportCalls'];
  expect(Object.keys(calls).sort()).toEqual(methods.filter((name) => !internal.includes(name)).sort());

  // Calls in progress when the server is killed, and calls made while it is down.
  const watching = client.waitForJob(running, { untilPaused: true });
  first.process.kill('SIGKILL');
  await first.exited;
  const start = performance.now();
  const times: [string, number][] = [];
  const calling = Object.entries(calls).map(async ([name, call]) => {
    await call().catch((error: unknown) => {
      throw new Error(name, { cause: error });
    });
    times.push([name, performance.now() - start]);
  });
  const outcomes = Promise.allSettled(calling);
  await new Promise((resolve) => setTimeout(resolve, outageMs)); // the outage itself is being tested
  expect(times).toEqual([]);
  await startServerProcess(dataFolder, { ...settings, RELORA_GRPC_ADDRESS: first.grpcAddress });
  const failed = (await outcomes).flatMap((outcome) => {
    if (outcome.status === 'fulfilled') return [];
    const { message, cause } = outcome.reason as Error;
    return [`${message}: ${String(cause)}`];
  });
  expect(failed).toEqual([]);
  expect(times).toHaveLength(calling.length);
  expect((await watching).state).toBe(JobState.PAUSED);
  // Whether repeated or not, each was created once.
  expect((await client.getJob('jobs/made-in-the-dark')).name).toBe('jobs/made-in-the-dark');
});
