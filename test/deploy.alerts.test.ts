import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { parse } from 'yaml';

const folder = fileURLToPath(new URL('../deploy/prometheus', import.meta.url));
const read = (file: string): unknown => parse(readFileSync(join(folder, file), 'utf8'));
const hasPromtool = spawnSync('promtool', ['--version']).status === 0;

it('every alert has a case where it fires and one where it does not', () => {
  const { groups } = read('rules.yml') as { groups: { rules: { alert: string }[] }[] };
  const { tests } = read('rules.test.yml') as {
    tests: { alert_rule_test: { alertname: string; exp_alerts?: unknown[] }[] }[];
  };
  const cases = tests.flatMap((each) => each.alert_rule_test);
  for (const { alert } of groups.flatMap(({ rules }) => rules)) {
    const own = cases.filter(({ alertname }) => alertname === alert);
    const counts = own.map(({ exp_alerts: expected = [] }) => expected.length);
    expect(counts, alert).toContain(0);
    expect(Math.max(...counts), alert).toBeGreaterThan(0);
  }
});

it.skipIf(!hasPromtool)('every alert fires where it should, and only there', () => {
  const { stdout, stderr, status } = spawnSync('promtool', ['test', 'rules', 'rules.test.yml'], {
    cwd: folder,
    encoding: 'utf8',
  });
  expect({ status, output: stdout + stderr }).toMatchObject({ status: 0 });
});
