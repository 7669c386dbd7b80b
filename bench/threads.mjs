import { fastestMode } from './modes.mjs';
import { alternate } from './sides/alternate.mjs';
import { batchShape } from './sides/sides.mjs';
import { milliseconds, table, times } from './table.mjs';

export const name = 'threads';
export const title = 'From one thread to all, llama-60m';
export const isFull = false;

export async function run(session) {
  const rank = 128;
  const mode = await fastestMode(session, 'relora', rank);
  const counts = [...new Set([1, 2, session.threads])].filter((count) => count <= session.threads);
  const children = [];
  for (const threads of counts)
    children.push(
      await session.open({ engine: 'relora', preset: 'llama-60m', rank, ...batchShape, ...mode, threads }),
    );
  const runs = await alternate(children);
  await Promise.all(children.map((child) => child.close()));
  return counts.map((threads, index) => ({ threads, ...runs[index] }));
}

export function report(rows) {
  const cells = rows.map(({ threads, secondsBest, secondsMedian }) => [
    threads,
    milliseconds(secondsBest),
    milliseconds(secondsMedian),
    times(rows[0].secondsBest / secondsBest),
  ]);
  return `ReLoRA r=128, best and median of 7 steps after 3 warm-ups in turn.

${table(['threads', 'ms a step, best', 'median', 'speed'], cells)}`;
}
