import { writeSync } from 'node:fs';
import { workerData } from 'node:worker_threads';
import { heartbeat } from '../heartbeat.js';

/** Processor time per interval above which the process counts as computing; this thread itself uses a hundredth of that. */
const computingMicroseconds = 0.01 * heartbeat.intervalMs * 1000;

const turns = workerData as Int32Array;
let turnsBefore = -1;
let usedBefore = usedMicroseconds();

setInterval(() => {
  const turnsNow = Atomics.load(turns, 0);
  const usedNow = usedMicroseconds();
  if (turnsNow !== turnsBefore) send(heartbeat.turned);
  else send(usedNow - usedBefore > computingMicroseconds ? heartbeat.computing : heartbeat.hanging);
  turnsBefore = turnsNow;
  usedBefore = usedNow;
}, heartbeat.intervalMs);

function send(beat: string): void {
  try {
    writeSync(heartbeat.fileDescriptor, beat);
  } catch (error) {
    // The server is gone, and nobody can use our results. The event loop gets the same news, but may be blocked for a long time, or for ever.
    if ((error as NodeJS.ErrnoException).code === 'EPIPE') process.kill(process.pid, 'SIGKILL');
  }
}

/** Of all threads of this process. */
function usedMicroseconds(): number {
  const { user, system } = process.cpuUsage();
  return user + system;
}
