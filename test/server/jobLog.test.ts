import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { LogLine } from '@relora/sdk/contract';
import { expect, it } from 'vitest';
import { isTerminal } from '../../server/dist/jobs/job.js';
import { JobLog, LogReader } from '../../server/dist/trainer/jobLog.js';
import { openApi, refusalOf } from './apiServer.js';
import { jobWhen, readyDataset, runSpec, submit, temporaryFolder } from './parts.js';

const text = (index: number) => `line ${index} ${'x'.repeat(40)} ünï`;

async function readAll(reader: LogReader): Promise<string[]> {
  const lines: string[] = [];
  for await (const page of reader.read()) lines.push(...page.map((line) => line.text));
  return lines;
}

it('the newest of what is printed is kept, within its bytes, and a reader that follows misses no line of it', async () => {
  const folder = temporaryFolder();
  const log = new JobLog(folder, 1, 64 * 1024);
  const reader = new LogReader(folder, 1);
  const seen: string[] = [];
  for (let index = 0; index < 5000; index++) {
    log.write(index % 2 === 0, text(index));
    if (index % 100 < 99) continue;
    await log.flush();
    seen.push(...(await readAll(reader)));
  }
  expect(seen).toEqual(Array.from({ length: 5000 }, (_, index) => text(index)));
  const kept = await readAll(new LogReader(folder, 1));
  expect(kept).toEqual(seen.slice(-kept.length));
  expect(kept.length).toBeGreaterThan(300);
  const bytes = readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
  expect(bytes).toBeLessThan(80 * 1024);
});

it('a flood is cut, and says so; the output of old attempts goes', async () => {
  const folder = temporaryFolder();
  for (let attempt = 1; attempt <= 12; attempt++) {
    const log = new JobLog(folder, attempt, 1 << 20);
    for (let index = 0; index < (attempt === 12 ? 20_000 : 1); index++) log.write(false, text(index));
    await log.flush();
    log.write(false, 'the end');
    await log.flush();
  }
  expect(existsSync(join(folder, '2.log'))).toBe(false);
  expect(existsSync(join(folder, '3.log'))).toBe(true);
  const lines = await readAll(new LogReader(folder, 12));
  expect(lines.length).toBeLessThan(20_000);
  expect(lines.at(-2)).toMatch(/^\(\d+ lines were printed too fast and are left out\)$/);
  expect(lines.at(-1)).toBe('the end');
});

it('a job that fails shows what its trainers printed, by attempt, also to who follows', async () => {
  const { parts, training } = await openApi();
  await readyDataset(parts);
  const { id } = await submit(parts, { spec: runSpec('heap') });
  const name = `jobs/${id}`;
  const read = async (request: { attempt?: number; follow?: boolean }) => {
    const lines: LogLine[] = [];
    for await (const response of training.getJobLog({ name, ...request })) lines.push(...response.lines);
    return lines;
  };
  const followed = read({ follow: true });
  await parts.supervisor.start();
  const job = await jobWhen(parts, id, ({ state }) => isTerminal(state));
  expect(job.state).toBe('failed');
  const printed = 'FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory';
  expect(job.failure?.lastLines).toContain(printed);
  expect((await training.getJob({ name })).job!.failure!.lastLines).toContain(printed);

  const all = await read({});
  expect(
    all.filter((line) => line.text === printed).map(({ attempt, isError }) => [attempt, isError]),
  ).toEqual(Array.from({ length: job.attempt }, (_, index) => [index + 1, true]));
  expect(job.attempt).toBeGreaterThan(1);
  expect(await read({ attempt: 1 })).toEqual(all.filter(({ attempt }) => attempt === 1));
  const sorted = (lines: LogLine[]) => lines.map((line) => JSON.stringify(line)).sort();
  expect(sorted(await followed)).toEqual(sorted(all));
  expect(await refusalOf((options) => training.getJobLog({ name, attempt: 99 }, options))).toMatchObject({
    fields: ['attempt'],
  });
});
