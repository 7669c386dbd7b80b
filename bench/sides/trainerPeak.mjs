import { readFileSync, readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fieldBytes } from './processMemory.mjs';

/** Status files of a process's children; a thread of it may end meanwhile. */
function childrenOf(pid) {
  return readdirSync(`/proc/${pid}/task`)
    .flatMap((thread) => childrenOfThread(`/proc/${pid}/task/${thread}/children`))
    .filter((child) => child.trim() !== '')
    .map((child) => `/proc/${child}/status`);
}

function childrenOfThread(path) {
  try {
    return readFileSync(path, 'utf8').split(' ');
  } catch (error) {
    if (error.code !== 'ENOENT' && error.code !== 'ESRCH') throw error;
    return [];
  }
}

/** The result of `act`, and the peak memory of a process that the server started during it: nothing else may start one. */
export async function childPeak(serverPid, act) {
  const before = new Set(childrenOf(serverPid));
  let peakBytes = 0;
  let isOver = false;
  const watching = (async () => {
    while (!isOver) {
      for (const status of childrenOf(serverPid))
        if (!before.has(status)) peakBytes = Math.max(peakBytes, fieldBytes(status, 'VmHWM') ?? 0);
      await sleep(20);
    }
  })();
  try {
    const result = await act();
    return { result, peakBytes };
  } finally {
    isOver = true;
    await watching;
  }
}

/** Trains a job on a server and returns the peak memory of its trainer process. */
export async function trainerPeak(client, serverPid, spec) {
  const { result: job, peakBytes } = await childPeak(serverPid, async () => {
    const { name } = await client.createJob(spec);
    return await client.waitForJob(name);
  });
  return { job, peakBytes };
}
