import { appendFileSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { randomOf } from './random.js';
import { canRunFleet, scenarios } from './scenarios.js';
import { wholeWay, World, type Ends, type Result } from './world.js';

/**
 * Each kind of fault once, from a fixed seed. `npm run test:faults` runs this again and again with other seeds: it names a
 * scenario, the seed, and the file for what came of it.
 */
const { FAULTS_SCENARIO: only, FAULTS_SEED: seedText = '1', FAULTS_RESULTS: results } = process.env;
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

/** What every run has to come to, whatever befell it. */
async function expectedResult(): Promise<Result> {
  return await (undisturbed ??= atEnd(async (ends) => await wholeWay(await World.alone(ends), ends, null)));
}

describe('jobs end with the same bytes, and nothing acknowledged is lost, where', () => {
  for (const scenario of scenarios) {
    const { name, what, needs, isShort, run } = scenario;
    const isWanted = only === undefined ? isShort : only === name;
    test.skipIf(!isWanted || (needs === 'fleet' && !canRunFleet))(`${name}: ${what}`, async () => {
      const expected = await expectedResult();
      const note = (entry: object): void => {
        if (results !== undefined) appendFileSync(results, `${JSON.stringify({ name, seed, ...entry })}\n`);
      };
      try {
        const count = await atEnd(
          async (ends) => await run(randomOf(seed), ends, expected, only === undefined ? 3 : 10),
        );
        note({ faults: count });
        expect(count).toBeGreaterThan(0);
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
  // What is written of it is what was counted.
  const report = readFileSync(new URL('../faults-report.md', import.meta.url), 'utf8');
  for (const [name, { faults, target, trials, failures }] of Object.entries(tally)) {
    const row = report.split('\n').find((line) => line.startsWith(`| \`${name}\` `))!;
    const numbers = row.split('|').slice(3, 7).map(Number);
    expect(numbers, name).toEqual([faults, target, trials, failures.length]);
  }
});
