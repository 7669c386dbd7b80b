import type { WatchJobResponse } from '@relora/sdk/contract';
import { expect, it } from 'vitest';
import { openApi } from './apiServer.js';
import { claim, execution, stepEvent, submit } from './parts.js';

it('a watcher that asks for fewer steps gets the newest in each time, every other event, and counts of what it missed', async () => {
  const { parts, training } = await openApi();
  const { id } = await submit(parts);
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(key, execution, 0);
  const seen: WatchJobResponse[] = [];
  const watch = (async () => {
    for await (const response of training.watchJob({ name: `jobs/${id}`, stepIntervalMs: 200 }))
      if (response.event!.heartbeat === undefined) seen.push(response);
  })();
  const stepsSeen = () => seen.filter(({ event }) => event!.step !== undefined).length;
  const start = performance.now();
  let step = 0;
  // On a busy machine four may be seen before this many were appended.
  while (stepsSeen() < 4 || step < 12) {
    await parts.attempts.append(key, [stepEvent(step++), stepEvent(step++), stepEvent(step++)]);
    if (step === 9)
      await parts.attempts.append(key, [
        { timeMs: 1, body: { kind: 'sample', step, prompt: '', text: 'in between' } },
      ]);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  const lastStep = step - 1;
  await parts.attempts.failed(key, { reason: 'TRAINER_ERROR', message: 'The end' });
  await watch;

  const steps = seen.flatMap(({ event }) => (event!.step ? [event!.step.step] : []));
  expect(steps.length).toBeGreaterThanOrEqual(4);
  expect(steps.length).toBeLessThanOrEqual((performance.now() - start) / 200 + 4);
  expect(steps.at(-1)).toBe(lastStep); // the last one is always sent
  expect(seen.filter(({ event }) => event!.sample !== undefined)).toHaveLength(1);
  let sequence = 0;
  for (const { event, omittedStepEvents } of seen) {
    sequence += omittedStepEvents + 1;
    expect(event!.sequence).toBe(sequence);
  }
  expect(sequence).toBe((await parts.store.find(id))!.lastSequence);
});

it('a watcher for whom a step waits hears that the server is there, and of the end before the step is due', async () => {
  const { parts, training } = await openApi({ RELORA_HEARTBEAT_SECONDS: '0.1' });
  const { id } = await submit(parts);
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(key, execution, 0);
  await parts.attempts.append(key, [stepEvent(0), stepEvent(1)]);
  const seen: string[] = [];
  const heartbeats = new Set<number>();
  let lastSent = 0;
  for await (const { event } of training.watchJob({ name: `jobs/${id}`, stepIntervalMs: 60_000 })) {
    if (event!.heartbeat !== undefined) {
      expect(event!.sequence).toBe(lastSent); // what the client has, not what is still to be sent
      if (heartbeats.size === 0) await parts.attempts.failed(key, { reason: 'TRAINER_ERROR', message: '' });
      heartbeats.add(event!.sequence);
      continue;
    }
    lastSent = event!.sequence;
    seen.push(event!.step === undefined ? 'other' : `step ${event!.step.step}`);
    if (event!.step?.step === 1) await parts.attempts.append(key, [stepEvent(2), stepEvent(3)]);
  }
  expect(seen.slice(-3)).toEqual(['step 1', 'step 3', 'other']);
  expect(heartbeats.size).toBe(1);
});

it('a watcher that asks for nothing gets every event', async () => {
  const { parts, training } = await openApi();
  const { id } = await submit(parts);
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  await parts.attempts.started(key, execution, 0);
  for (let step = 0; step < 300; step += 3)
    await parts.attempts.append(key, [stepEvent(step), stepEvent(step + 1), stepEvent(step + 2)]);
  await parts.attempts.failed(key, { reason: 'TRAINER_ERROR', message: 'The end' });
  const sequences: number[] = [];
  for await (const { event } of training.watchJob({ name: `jobs/${id}` })) sequences.push(event!.sequence);
  expect(sequences).toEqual(Array.from({ length: 304 }, (_, index) => index + 1));
});

it('a batch of events reads the specification of its job once, and later ones not at all', async () => {
  const { parts } = await openApi();
  const { id } = await submit(parts);
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  const parse = JSON.parse;
  let specCount = 0;
  JSON.parse = (text: string, ...rest: []) => {
    if (text.includes('"maxPositionEmbeddings"')) specCount++;
    return parse(text, ...rest) as unknown;
  };
  try {
    await parts.attempts.started(key, execution, 0);
    for (let batch = 0; batch < 3; batch++)
      await parts.attempts.append(
        key,
        Array.from({ length: 256 }, (_, index) => stepEvent(256 * batch + index)),
      );
  } finally {
    JSON.parse = parse;
  }
  expect(specCount).toBe(1);
});
