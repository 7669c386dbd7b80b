import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { randomOf } from './random.js';
import { canRun } from './scenario.js';
import { scenarios } from './scenarios.js';
import { wholeWay, type Result } from './wholeWay.js';
import { World, type Ends } from './world.js';

/**
 * Each kind of fault once, with a fixed seed. `npm run test:faults` repeats this with other seeds: it passes a scenario, the seed, the
 * number of faults, and the files for the result and for that of an undisturbed run.
 */
const {
  FAULTS_SCENARIO: only,
  FAULTS_SEED: seedText = '1',
  FAULTS_COUNT: countText,
  FAULTS_RESULTS: results,
  FAULTS_EXPECTED: knownFile,
} = process.env;
const seed = Number(seedText);

type Tally = Record<
  string,
  { what: string; target: number; trials: number; faults: number; failures: unknown[] }
>;

async function atEnd<T>(work: (ends: Ends) => Promise<T>): Promise<T> {
  const ends: Ends = [];
  try {
    return await work(ends);
  } finally {
    for (const end of ends.reverse()) await end();
  }
}

let undisturbed: Promise<Result> | undefined;

/** The result that every run must have, whatever faults occur. */
async function expectedResult(): Promise<Result> {
  return await (undisturbed ??= known() ?? findOut());
}

/** From an earlier trial of the same session. */
function known(): Promise<Result> | undefined {
  if (knownFile === undefined || !existsSync(knownFile)) return undefined;
  return Promise.resolve(JSON.parse(readFileSync(knownFile, 'utf8')) as Result);
}

async function findOut(): Promise<Result> {
  const result = await atEnd(async (ends) => await wholeWay(await World.alone(ends), ends, null));
  if (knownFile !== undefined) writeFileSync(knownFile, JSON.stringify(result));
  return result;
}

describe('jobs end with the same bytes, and nothing acknowledged is lost, where', () => {
  for (const scenario of scenarios) {
    const { name, what, isShort, perTrial, run } = scenario;
    const isWanted = only === undefined ? isShort : only === name;
    test.skipIf(!isWanted || !canRun(scenario))(`${name}: ${what}`, async () => {
      const expected = await expectedResult();
      const note = (entry: object): void => {
        if (results !== undefined) appendFileSync(results, `${JSON.stringify({ name, seed, ...entry })}\n`);
      };
      try {
        const count = Number(countText ?? (only === undefined ? 3 : perTrial));
        const outcome = await atEnd(async (ends) => await run(randomOf(seed), ends, expected, count));
        const measured = typeof outcome === 'number' ? { faults: outcome } : outcome;
        note(measured);
        expect(measured.faults).toBeGreaterThan(0);
      } catch (error) {
        note({ problem: String((error as Error).message).slice(0, 500) });
        throw error;
      }
    });
  }
});

test('the tally has the scenarios that there are', () => {
  const tally = JSON.parse(readFileSync(new URL('./tally.json', import.meta.url), 'utf8')) as Tally;
  expect(Object.entries(tally).map(([name, { what, target }]) => ({ name, what, target }))).toEqual(
    scenarios.map(({ name, what, target }) => ({ name, what, target })),
  );
  // The report matches the tally.
  const report = readFileSync(new URL('../faults-report.md', import.meta.url), 'utf8');
  for (const [name, { faults, target, trials, failures }] of Object.entries(tally)) {
    const row = report.split('\n').find((line) => line.startsWith(`| \`${name}\` `))!;
    const numbers = row.split('|').slice(3, 7).map(Number);
    expect(numbers, name).toEqual([faults, target, trials, failures.length]);
  }
});
