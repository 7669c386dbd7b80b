// node bench/history/readers.mjs ADDRESS JOB SEQUENCE COUNT: COUNT readers of every event of a running job after a sequence number; with a
// count of 0 one client from the first event. Prints a line when they have connected, and when the job has ended how many events came and
// how late.
import { connect } from 'node:http2';
import { performance } from 'node:perf_hooks';
import { ReloraClient } from '@relora/sdk';
import { rawWatch } from '../sides/rawWatch.mjs';

const [address, jobId, sequence, count] = process.argv.slice(2);
const name = `jobs/${jobId}`;
const say = (value) => console.log(JSON.stringify(value));
say(Number(count) === 0 ? await fromFirst() : await fromHead(Number(count)));

/** Receives all events and requires them to be without gaps: each begins where the one before ended. */
async function fromFirst() {
  const client = new ReloraClient({ address });
  const start = performance.now();
  let [messageCount, eventCount, caughtUpSeconds] = [0, 0, null];
  for await (const event of client.watch(name)) {
    if (messageCount === 0) say('connected');
    if (event.firstSequence !== eventCount + 1)
      throw new Error(`Expected event ${eventCount + 1}, got ${event.firstSequence}`);
    eventCount = event.sequence;
    messageCount++;
    if (eventCount > Number(sequence)) caughtUpSeconds ??= ((performance.now() - start) / 1000).toFixed(1);
  }
  client.close();
  return { messageCount, eventCount, caughtUpSeconds };
}

async function fromHead(readerCount) {
  const session = connect(`http://${address}`);
  let waitingCount = readerCount;
  const onFirst = () => {
    if (--waitingCount === 0) say('connected');
  };
  // Begins with the last existing event, whose arrival shows that the stream works.
  const afterSequence = Number(sequence) - 1;
  const readers = await Promise.all(
    Array.from({ length: readerCount }, () => rawWatch(session, name, { afterSequence, onFirst })),
  );
  session.destroy();
  const ages = Float64Array.from(readers.flatMap((reader) => reader.ages)).sort();
  const at = (share) => ages[Math.min(ages.length - 1, Math.floor(share * ages.length))];
  const eventCount = readers.reduce((sum, { messageCount }) => sum + messageCount - 1, 0);
  return { eventCount, medianMs: at(0.5), p99Ms: at(0.99), worstMs: at(1) };
}
