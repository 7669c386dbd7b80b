import { JobState, type JobEvent } from '@relora/sdk/contract';
import { ClientError, Status } from 'nice-grpc';
import { expect, test } from 'vitest';
import { clientsOf, createTinyJob, uploadTinyText } from '../e2e/watchedJob.js';
import { reflect } from '../e2e/reflectedClient.js';
import { temporaryFolder } from './parts.js';
import { runServer } from './runningServer.js';

test('a stop ends watches and uploads with UNAVAILABLE, queues the running job, and gives the folder back', async () => {
  const { server, dataFolder, training, datasets } = await runServer();
  const clients = clientsOf(server.grpcAddress);
  await uploadTinyText(clients);
  const name = await createTinyJob(clients, 100_000);
  let lastSequence = 0;
  const watchEnd = (async () => {
    for await (const { event } of training.watchJob({ name })) {
      lastSequence = event!.sequence;
      if (event?.step?.step === 3) void server.stop();
    }
  })().catch((error: unknown) => error);
  const uploadEnd = datasets
    .uploadDataset(
      (async function* () {
        yield {
          header: {
            datasetId: 'half-sent',
            files: [{ fileName: 'a.txt', sizeBytes: 10, sha256: 'a'.repeat(64) }],
          },
        };
        await watchEnd;
      })(),
    )
    .catch((error: unknown) => error);
  for (const end of [await watchEnd, await uploadEnd]) {
    expect(end).toBeInstanceOf(ClientError);
    expect((end as ClientError).code).toBe(Status.UNAVAILABLE);
  }
  await server.stop();

  // Another server takes over the folder at once, and the job resumes where it was stopped.
  const next = await runServer({}, dataFolder);
  const events: JobEvent[] = [];
  for await (const { event } of next.training.watchJob({ name, afterSequence: lastSequence })) {
    if (event!.heartbeat === undefined) events.push(event!);
    if (event?.step !== undefined && event.attempt === 2) break;
  }
  expect(events[0]?.sequence).toBe(lastSequence + 1);
  const saved = events.findLast(
    ({ checkpoint, attempt }) => checkpoint !== undefined && attempt === 1,
  )?.checkpoint;
  const queued = events.find(({ state }) => state?.to === JobState.QUEUED);
  expect(queued?.attempt).toBe(1);
  expect(events.at(-1)?.step?.step).toBe(saved?.step);
});

test('after a stop nothing answers, and a second stop waits for the first', async () => {
  const { server, training, fetch } = await runServer();
  await Promise.all([server.stop(), server.stop()]);
  await expect(fetch('/healthz')).rejects.toThrow('fetch failed');
  await expect(training.listJobs({})).rejects.toMatchObject({ code: Status.UNAVAILABLE });
});

test('a folder that a server holds is refused to a second one, and its ports are left free', async () => {
  const { dataFolder, training } = await runServer();
  await expect(runServer({}, dataFolder)).rejects.toThrow(`in use by the server with pid ${process.pid}`);
  expect((await training.listJobs({})).jobs).toEqual([]);
});

test('an address that is taken stops the start, and what was started before it', async () => {
  const { server } = await runServer();
  const dataFolder = temporaryFolder();
  const settings = { RELORA_GRPC_ADDRESS: server.grpcAddress };
  await expect(runServer(settings, dataFolder)).rejects.toThrow('EADDRINUSE');
  // The folder is no longer locked.
  await runServer({}, dataFolder);
});

test('an open watch of health or stream of reflection does not hold up a stop', async () => {
  const { server, health } = await runServer();
  const watch = health.watch({ service: '' })[Symbol.asyncIterator]();
  await watch.next();
  // Ends with an error that keeps its stream open.
  await expect(reflect(server.grpcAddress, 'v1', ['relora.v1.Tea'])).rejects.toThrow('not found');
  await server.stop(); // within a test's time limit; if streams delayed it, it would take RELORA_SHUTDOWN_SECONDS
  expect(await watch.next()).toMatchObject({ value: { status: 2 } });
  await expect(watch.next()).rejects.toMatchObject({ code: Status.UNAVAILABLE });
});
