// Locks the store of a data folder, claims a job and appends step events; prints what is acknowledged.
import { LocalFeed } from '../../server/dist/store/changeFeed.js';
import { openDatabase } from '../../server/dist/store/database.js';
import { Leases } from '../../server/dist/store/leases.js';
import { JobAttempts } from '../../server/dist/jobs/jobAttempts.js';
import { JobJournal } from '../../server/dist/jobs/jobJournal.js';
import { JobQueue } from '../../server/dist/jobs/jobQueue.js';
import { stepBody } from './stepBody.mjs';

const [dataFolder, newJobText] = process.argv.slice(2);
const db = await openDatabase(dataFolder);
const journal = new JobJournal(db, new LocalFeed());
const queue = new JobQueue(journal, new Leases(db), { jobsMax: 10 });
const attempts = new JobAttempts(journal, dataFolder);
if (newJobText === undefined) {
  console.log('held');
  setInterval(() => {}, 1000);
} else {
  await queue.submit(JSON.parse(newJobText));
  const { job } = await queue.claimNext({ free: ['native'], pins: null, resolve: () => 'native' });
  const key = { jobId: job.id, attempt: job.attempt };
  for (let step = 0; ; step++) {
    const after = await attempts.append(key, [
      { timeMs: Date.now(), body: stepBody(2 * step) },
      { timeMs: Date.now(), body: stepBody(2 * step + 1) },
    ]);
    process.stdout.write(`${after.lastSequence}\n`);
  }
}
