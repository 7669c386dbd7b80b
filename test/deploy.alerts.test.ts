import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it, onTestFinished } from 'vitest';
import { parse, stringify } from 'yaml';

const folder = fileURLToPath(new URL('../deploy/prometheus', import.meta.url));
const read = (file: string): unknown => parse(readFileSync(join(folder, file), 'utf8'));
interface Rule {
  alert: string;
  expr: string;
  for?: string;
}
const readRules = () => read('rules.yml') as { groups: { rules: Rule[] }[] };
const hasPromtool = spawnSync('promtool', ['--version']).status === 0;

it('every alert has a case where it fires and one where it does not', () => {
  const { groups } = readRules();
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

it.skipIf(!hasPromtool)('a rule that fires never, always or at once is noticed by its cases', () => {
  const to = mkdtempSync(join(tmpdir(), 'relora-rules-'));
  onTestFinished(() => rmSync(to, { recursive: true }));
  writeFileSync(join(to, 'rules.test.yml'), readFileSync(join(folder, 'rules.test.yml')));
  const isNoticed = (change: (rule: Rule) => void, alert: string): boolean => {
    const rules = readRules();
    for (const rule of rules.groups.flatMap((group) => group.rules)) if (rule.alert === alert) change(rule);
    writeFileSync(join(to, 'rules.yml'), stringify(rules));
    return spawnSync('promtool', ['test', 'rules', 'rules.test.yml'], { cwd: to }).status !== 0;
  };
  for (const rule of readRules().groups.flatMap((group) => group.rules)) {
    expect(
      isNoticed((each) => (each.expr = 'vector(0) > 1'), rule.alert),
      `${rule.alert} never`,
    ).toBe(true);
    expect(
      isNoticed((each) => (each.expr = 'vector(1)'), rule.alert),
      `${rule.alert} always`,
    ).toBe(true);
    if (rule.for !== undefined)
      expect(
        isNoticed((each) => delete each.for, rule.alert),
        `${rule.alert} at once`,
      ).toBe(true);
  }
});
