/**
 * Provokes faults for the given time, and adds the results to the tally: `npm run test:faults -- [minutes] [scenario …]`. With 0 minutes it
 * only writes the report again. Each trial has its own seed, which the tally keeps if something went wrong: FAULTS_SCENARIO and FAULTS_SEED
 * repeat it. FAULTS_COUNT is the number of faults in a trial; for the soak, its minutes.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const tallyFile = join(root, 'test/faults/tally.json');
const reportFile = join(root, 'test/faults-report.md');
const [minutesText = '30', ...wanted] = process.argv.slice(2);
/** Far more than a trial takes even on a busy machine: longer means that it hangs. */
const trialMinutesMax = 90;
const endsAtMs = Date.now() + Number(minutesText) * 60_000;
if (!(Number(minutesText) >= 0)) {
  console.error(`Minutes were expected, not "${minutesText}"`);
  process.exit(2);
}

let tally = readTally();
const names = wanted.length > 0 ? wanted : Object.keys(tally);
const unknown = names.filter((name) => !(name in tally));
if (unknown.length > 0) {
  console.error(`Not known: ${unknown.join(', ')}; there are ${Object.keys(tally).join(', ')}`);
  process.exit(2);
}
const commit = spawnSync('git', ['rev-parse', '--short', 'HEAD'], {
  cwd: root,
  encoding: 'utf8',
}).stdout.trim();
const folder = mkdtempSync(join(tmpdir(), 'relora-faults-'));

// The scenario furthest from its target comes first, so that every run improves the whole table.
while (Date.now() < endsAtMs) {
  const name = names.reduce((least, other) => (share(other) < share(least) ? other : least));
  const seed = tally[name].trials + 1;
  const results = join(folder, `${name}-${seed}.jsonl`);
  const { status, stdout } = spawnSync(
    'npx',
    [
      ...['vitest', 'run', 'test/faults/faults.test.ts', '-t', `${name}:`],
      ...['--testTimeout', String(trialMinutesMax * 60_000)],
    ],
    {
      cwd: root,
      encoding: 'utf8',
      maxBuffer: 2 ** 26,
      env: {
        ...process.env,
        FAULTS_SCENARIO: name,
        FAULTS_SEED: String(seed),
        FAULTS_RESULTS: results,
        FAULTS_EXPECTED: join(folder, 'expected.json'),
      },
    },
  );
  const entries = existsSync(results)
    ? readFileSync(results, 'utf8')
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line))
    : [];
  const isLate = /Test timed out/.test(stdout);
  const entry =
    entries.at(-1) ?? (isLate ? { problem: `It did not end within ${trialMinutesMax} minutes` } : undefined);
  if (entry === undefined) {
    console.error(`${name} did not run:\n${stdout}`);
    process.exit(1);
  }
  tally = readTally(); // somebody may have changed it meanwhile
  tally[name].trials = seed;
  tally[name].faults += entry.faults ?? 0;
  if (entry.figures !== undefined) tally[name].figures = `${entry.figures} (seed ${seed}, at ${commit})`;
  if (status !== 0) {
    const problem = entry.problem ?? 'what followed it fell short';
    tally[name].failures.push({ seed, commit, problem });
    console.log(stdout); // for finding the cause
  }
  writeFileSync(tallyFile, `${JSON.stringify(tally, null, 2)}\n`);
  console.log(
    `${name} ${seed}: ${entry.problem === undefined ? `${entry.faults} faults, all well` : entry.problem.split('\n')[0]}`,
  );
}
rmSync(folder, { recursive: true, force: true });
writeReport();

function readTally() {
  return JSON.parse(readFileSync(tallyFile, 'utf8'));
}

function share(name) {
  const { faults, target } = tally[name];
  return faults / target;
}

function writeReport() {
  const rows = Object.entries(tally).map(
    ([name, { what, target, trials, faults, failures }]) =>
      `| \`${name}\` | ${what} | ${faults} | ${target} | ${trials} | ${failures.length} |`,
  );
  const failures = Object.entries(tally).flatMap(([name, { failures }]) =>
    failures.map(
      ({ seed, commit, problem, mended }) =>
        `- \`${name}\`, seed ${seed}, at ${commit}: ${problem.split('\n')[0]}` +
        (mended === undefined ? '' : `. Mended: ${mended}`),
    ),
  );
  const figures = Object.entries(tally).flatMap(([name, { figures }]) =>
    figures === undefined ? [] : [`- \`${name}\`: ${figures}`],
  );
  // A trial with an error of its own is withdrawn from the tally by hand, with a reason, and its seed is used again.
  const withdrawn = Object.entries(tally).flatMap(([name, { withdrawn = [] }]) =>
    withdrawn.map(({ seeds, why }) => `- \`${name}\`, seed ${seeds}: ${why}`),
  );
  const text = `# Faults provoked

Written by \`npm run test:faults\`, which adds to what is here: real servers and trainers, PostgreSQL and an S3 server are killed, stopped, cut
off and given wrong answers while a job goes its whole way, from the upload of its data to the download of its weights. A trial is well where the
job ends with the SHA-256 of an undisturbed run, its journal has no gap, nothing twice and no change, steps follow each other, and every
file that is downloaded is whole. \`npm test\` makes one trial of some of them.

| scenario | fault | faults so far | wanted | trials | trials that fell short |
| --- | --- | --- | --- | --- | --- |
${rows.join('\n')}

## Figures of the last trial

${figures.length === 0 ? 'None.' : figures.join('\n')}

## Trials that fell short

${failures.length === 0 ? 'None.' : failures.join('\n')}

## Trials that are not counted

${withdrawn.length === 0 ? 'None.' : withdrawn.join('\n')}
`;
  writeFileSync(reportFile, text);
  spawnSync('npx', ['prettier', '--write', reportFile, tallyFile], { cwd: root });
}
