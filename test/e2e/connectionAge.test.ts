import { once } from 'node:events';
import { connect } from 'node:http2';
import { JobState, parseJobSpec, ReloraClient, type JobEvent } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { uploaded } from './serverFleet.js';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';

const settings = { RELORA_CONNECTION_AGE_SECONDS: '1', RELORA_CONNECTION_AGE_GRACE_SECONDS: '1' };
/** Number of connections that a watcher has to outlive. */
const cutsWanted = 3;

test('a connection is asked to go at an age, takes calls to their end, and is cut after the grace', async () => {
  const { grpcAddress } = await startServerProcess(temporaryFolder(), settings);
  const session = connect(`http://${grpcAddress}`);
  onTestFinished(() => session.destroy());
  // A call that never ends by itself.
  const stream = session.request({
    ':method': 'POST',
    ':path': '/grpc.health.v1.Health/Watch',
    'content-type': 'application/grpc',
    te: 'trailers',
  });
  stream.on('error', () => {}); // 'close' follows
  stream.end(Buffer.alloc(5)); // an empty message
  const [message] = (await once(stream, 'data')) as [Buffer];
  expect(message.length).toBeGreaterThan(5);
  const [code] = (await once(session, 'goaway')) as [number];
  expect(code).toBe(0); // it ends without an error
  expect(stream.closed).toBe(false);
  stream.resume();
  await once(stream, 'close');
});

test('a watch outlives the connections that are cut under it, without a gap', async () => {
  const { grpcAddress } = await startServerProcess(temporaryFolder(), settings);
  let cuts = 0;
  const logger = {
    debug: () => {},
    warn: (fields: object) => {
      if ('what' in fields && /watch/i.test(String(fields.what))) cuts++;
    },
  };
  const client = new ReloraClient({ address: grpcAddress, logger });
  onTestFinished(() => client.close());
  await uploaded(client);
  const { name } = await client.createJob(parseJobSpec(tinySpec(1_000_000)));
  const events: JobEvent[] = [];
  let isCancelled = false;
  for await (const event of client.watch(name)) {
    events.push(event);
    if (cuts >= cutsWanted && !isCancelled) {
      isCancelled = true;
      await client.cancelJob(name);
    }
  }
  expect(cuts).toBeGreaterThanOrEqual(cutsWanted);
  expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
  expect((await client.getJob(name)).state).toBe(JobState.CANCELLED);
});
