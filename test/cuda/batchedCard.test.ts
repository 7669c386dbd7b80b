import { expect, it } from 'vitest';
import { batched } from '../../engine/dist/device/cuda/batchedCard.js';
import type { Card } from '../../engine/dist/device/cuda/cudaAddon.js';

/** A card that records its calls. */
function noting() {
  const calls: string[] = [];
  const names = ['fill', 'copy', 'upload', 'downloadLater', 'wait', 'synchronize', 'endCapture', 'allocate'];
  const card = {
    ...Object.fromEntries(names.map((name) => [name, () => void calls.push(name)])),
    run: (commands: Uint8Array) => void calls.push(`run ${commands.length} ${commands[0]}`),
  } as unknown as Card;
  return { calls, card: batched(card) };
}

const launch = (first: number, bytes = 64) => new Uint8Array(bytes).fill(first);

it('launches that follow one another are one call, in their order, before whatever else is queued or waits', async () => {
  const { calls, card } = noting();
  card.run(launch(1));
  card.run(launch(2));
  card.allocate(16); // not queued: collected launches need not be submitted
  expect(calls).toEqual(['allocate']);
  card.fill(256, 0, 16);
  card.run(launch(3));
  await card.downloadLater(new Uint8Array(1), 256);
  card.run(launch(4));
  card.endCapture();
  await card.wait();
  expect(calls.slice(1)).toEqual([
    ...['run 128 1', 'fill', 'run 64 3', 'downloadLater', 'run 64 4', 'endCapture', 'wait'],
  ]);
});

it('a list that is full is handed over, and one that fits none goes alone', () => {
  const { calls, card } = noting();
  for (let i = 0; i < 300; i++) card.run(launch(i % 256));
  const full = calls.length;
  expect(full, 'the card does not wait for the end').toBeGreaterThan(1);
  card.run(launch(7, 100_000));
  expect(calls.at(-1)).toBe('run 100000 7');
  const bytes = calls.map((call) => Number(call.split(' ')[1])).reduce((sum, count) => sum + count, 0);
  expect(bytes).toBe(300 * 64 + 100_000);
});
