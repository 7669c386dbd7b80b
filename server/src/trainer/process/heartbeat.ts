import { Worker } from 'node:worker_threads';
import { heartbeat } from '../heartbeat.js';

/** Starts the thread that shows the server that this process is alive, and whether its event loop turns. */
export function startHeartbeat(): void {
  const turns = new Int32Array(new SharedArrayBuffer(4));
  setInterval(() => Atomics.add(turns, 0, 1), heartbeat.intervalMs / 2).unref();
  new Worker(new URL('./heartbeatThread.js', import.meta.url), { workerData: turns }).unref();
}
