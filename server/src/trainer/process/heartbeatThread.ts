import { writeSync } from 'node:fs';
import { workerData } from 'node:worker_threads';
import { heartbeat } from '../heartbeat.js';

/** Processor time in an interval above which the process computes; this thread itself takes a hundredth of it. */
const computingMicroseconds = 0.01 * heartbeat.intervalMs * 1000;

const turns = workerData as Int32Array;
let turnsBefore = -1;
let usedBefore = usedMicroseconds();

setInterval(() => {
  const turnsNow = Atomics.load(turns, 0);
  const usedNow = usedMicroseconds();
  if (turnsNow !== turnsBefore) send(heartbeat.turned);
  else if (usedNow - usedBefore > computingMicroseconds) send(heartbeat.computing);
  turnsBefore = turnsNow;
  usedBefore = usedNow;
}, heartbeat.intervalMs);

function send(beat: string): void {
  try {
    writeSync(heartbeat.fileDescriptor, beat);
  } catch (error) {
    // The server is gone, and whoever could use what we compute; the event loop, which gets the same news, may not turn for long.
    if ((error as NodeJS.ErrnoException).code === 'EPIPE') process.kill(process.pid, 'SIGKILL');
  }
}

/** Of all threads of this process. */
function usedMicroseconds(): number {
  const { user, system } = process.cpuUsage();
  return user + system;
}
