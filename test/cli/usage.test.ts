import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { cli } from './commandLine.js';

test('what jobs took comes as table, JSON and CSV, and quotas as a table', async () => {
  const folder = temporaryFolder();
  const quotaFile = join(folder, 'quotas.json');
  writeFileSync(quotaFile, '{"default": {"queuedJobs": 3, "bytes": 5000000000}}', { mode: 0o600 });
  const { address } = await realServer({ RELORA_QUOTA_FILE: quotaFile });
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'tiny.txt'), tinyText());
  writeFileSync(join(folder, 'spec.json'), JSON.stringify(tinySpec(20)));
  expect((await relora(['usage'])).output).toBe('No use was recorded.\n');
  expect((await relora(['upload', 'tiny.txt', '--held-out', '0.1', '--id', 'tiny-text'])).code).toBe(0);
  const made = await relora([
    'run',
    '--spec',
    'spec.json',
    '--id',
    'job-one',
    '--label',
    'team==sum(1), "x"',
  ]);
  expect(made.code, made.errors).toBe(0);

  const [{ rows }] = (await relora(['usage', '--by', 'job', '--json'])).json() as [
    { rows: { tokens: number; deviceHours: number; stepSeconds: number }[] },
  ];
  expect(rows).toHaveLength(1);
  const { tokens, deviceHours, stepSeconds } = rows[0]!;
  // The sum over the journal, as a watcher reads it.
  const events = (await relora(['watch', 'job-one', '--json'])).json() as {
    step?: { tokenCount?: number };
  }[];
  const ofJournal = events.reduce((sum, { step }) => sum + (step?.tokenCount ?? 0), 0);
  expect(tokens).toBe(ofJournal);
  expect(deviceHours).toBeGreaterThan(stepSeconds / 3600);
  // Labels are escaped, so that spreadsheets do not evaluate them as formulas.
  expect((await relora(['usage', '--by', 'job', '--label', 'team', '--csv'])).output).toBe(
    `job,team,attempts,step_seconds,tokens,device_hours\njobs/job-one,"'=sum(1), ""x""",1,${stepSeconds},${tokens},${deviceHours}\n`,
  );
  expect((await relora(['usage', '--by', 'tenant,month'])).output).toMatch(
    /^TENANT +MONTH +ATTEMPTS +STEP SECONDS +TOKENS +DEVICE HOURS\ndefault +\d{4}-\d\d +1 /,
  );
  expect(await relora(['usage', '--by', 'weeks'])).toMatchObject({ code: 2, output: '' });
  expect(await relora(['usage', '--from', '2026'])).toMatchObject({ code: 3, output: '' });

  const quota = (await relora(['quota'])).output.split('\n');
  expect(quota[0]).toBe('Tenant default');
  expect(quota[3]).toMatch(/^queued_jobs +0 +3$/);
  expect(quota[4]).toMatch(/^bytes +[\d.]+ [kM]B +5 GB$/);
  expect(quota[5]).toMatch(/^device_hours +[\d.e-]+ +no limit +30 days$/);
});
