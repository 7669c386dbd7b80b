import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Status } from 'nice-grpc';
import { describe, expect, it } from 'vitest';
import { settings } from '../../server/dist/config.js';
import {
  comparisonWarnings,
  datasetWarnings,
  engineFailures,
  engineWarnings,
  serviceErrors,
  specWarnings,
} from '../../server/dist/errors.js';
import { serverFailures, serverWarnings, taskFailures } from '../../server/dist/jobs/jobFailures.js';
import { metricTable } from '../../server/dist/metrics/metricTable.js';
import { fieldsOf } from './contractText.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** Cells of all rows of the tables under a heading; null: of the whole page. */
function rowsOf(file: string, heading: string | null): string[][] {
  const text = readFileSync(join(root, 'docs', file), 'utf8');
  const sections = text.split(/^## /m);
  const section = heading === null ? text : sections.find((part) => part.startsWith(`${heading}\n`));
  if (section === undefined) throw new Error(`docs/${file} has no heading "${heading}"`);
  const lines = section.split('\n').filter((line) => line.startsWith('| `'));
  return lines.map((line) =>
    line
      .replace(/\\\|/g, '\u0000')
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim().replaceAll('\u0000', '|')),
  );
}

const plain = (cell: string): string => cell.replaceAll('`', '').replaceAll('\\', '');
const firstCells = (rows: string[][]): string[] => rows.map(([cell]) => plain(cell!));

/** Error reasons in the engine's sources: capitalized words with an underscore that are thrown or reported. */
function reasonsOfEngine(): Set<string> {
  const files = readdirSync(join(root, 'engine/src'), { recursive: true, encoding: 'utf8' });
  const text = files
    .filter((file) => file.endsWith('.ts'))
    .map((file) => readFileSync(join(root, 'engine/src', file), 'utf8'))
    .join('\n');
  const thrown = text.matchAll(
    /(?:super\(|EngineError\(|reason: |^ {2})\s*'?([A-Z]{2}[A-Z0-9]*(?:_[A-Z0-9]+)+)'?(?:,|:|\))/gm,
  );
  return new Set([...thrown].map((match) => match[1]!));
}

describe('docs/security.md', () => {
  it('names for each threat tests that there are', () => {
    const page = readFileSync(join(root, 'docs/security.md'), 'utf8');
    const section = page.split(/^## /m).find((part) => part.startsWith('Threats\n'))!;
    const rows = section.split('\n').filter((line) => /^\| (?!threat |-)/.test(line));
    expect(rows.length).toBeGreaterThan(10);
    for (const row of rows) {
      const named = [...row.matchAll(/`(test\/[^`]+)`/g)].map(([, name]) => name!);
      expect(named, row).not.toEqual([]);
      for (const name of named) expect(existsSync(join(root, `${name}.test.ts`)), row).toBe(true);
    }
  });
});

describe('docs/errors.md', () => {
  it('has every error of calls with its code and what to do, and no other', () => {
    const documented = rowsOf('errors.md', 'Errors of calls').map((row) => row.map(plain));
    const entries = Object.entries(serviceErrors) as [string, { status: Status; fix: string }][];
    expect(documented).toEqual(
      entries.map(([reason, { status, fix }]) => [reason, Status[status], plain(fix)]),
    );
  });

  it('has every failure of jobs and data sets, and no other', () => {
    const documented = rowsOf('errors.md', 'Failures of jobs and data sets').map((row) => row.map(plain));
    const entries = [engineFailures, serverFailures, taskFailures].flatMap((table) =>
      Object.entries<string>(table),
    );
    expect(documented).toEqual(entries.map(([reason, text]) => [reason, plain(text)]));
  });

  it('has every error that only the SDK makes, and no other', () => {
    const folder = join(root, 'sdk', 'src');
    const files = readdirSync(folder).filter((name) => name.endsWith('.ts'));
    const texts = files.map((name) => readFileSync(join(folder, name), 'utf8'));
    const made = texts.flatMap((text) =>
      [...text.matchAll(/reason: '([A-Z_]+)'/g)].map(([, reason]) => reason!),
    );
    const own = new Set(made.filter((reason) => !Object.hasOwn(serviceErrors, reason)));
    expect(firstCells(rowsOf('errors.md', 'Errors of the SDK')).sort()).toEqual([...own].sort());
  });

  it('has every warning, and no other', () => {
    const documented = rowsOf('errors.md', 'Warnings').map((row) => row.map(plain));
    const entries = [
      specWarnings,
      comparisonWarnings,
      serverWarnings,
      engineWarnings,
      datasetWarnings,
    ].flatMap((table) => Object.entries<string>(table));
    expect(documented).toEqual(entries.map(([reason, text]) => [reason, plain(text)]));
  });
});

describe('the catalog', () => {
  it('knows every reason that the engine gives, and no other', () => {
    const known = [...Object.keys(engineFailures), ...Object.keys(engineWarnings)];
    // Reported by the engine, and recorded by the server only as a warning: the run resumes from an earlier checkpoint.
    expect([...reasonsOfEngine()].filter((reason) => reason !== 'CHECKPOINT_CORRUPT').sort()).toEqual(
      known.sort(),
    );
  });

  it('has reasons that AIP-193 allows', () => {
    const reasons = [
      serviceErrors,
      engineFailures,
      serverFailures,
      taskFailures,
      specWarnings,
      comparisonWarnings,
    ].flatMap((table) => Object.keys(table));
    expect(reasons.filter((reason) => !/^[A-Z][A-Z0-9_]{2,62}$/.test(reason))).toEqual([]);
  });
});

describe('docs/metrics.md', () => {
  it('has every metric with its type, labels and help, and no other', () => {
    const documented = rowsOf('metrics.md', null).filter(([name]) => name!.startsWith('`relora_'));
    const entries = Object.values(metricTable);
    const lines = documented.map((row) => row.map(plain).join(' | '));
    const expected = entries.map(({ name, type, labels, help }) =>
      [name, type, labels.join(', '), plain(help)].join(' | '),
    );
    expect(lines.sort()).toEqual(expected.sort());
  });

  it('names follow the rules of Prometheus: one prefix, base units, _total on counters alone', () => {
    const entries = Object.values(metricTable);
    expect(new Set(entries.map(({ name }) => name)).size).toBe(entries.length);
    for (const { name, type, help } of entries) {
      expect(name).toMatch(/^relora_[a-z0-9_]+$/);
      expect(name).not.toMatch(/_(ms|milliseconds|minutes|kb|mb|percent)(_|$)/);
      expect(name.endsWith('_total'), name).toBe(type === 'counter');
      expect(help).toMatch(/^[A-Z0-9].*\.$/);
    }
  });
});

describe('docs/configuration.md', () => {
  it('has every setting with default, range and reason, and no other', () => {
    const documented = rowsOf('configuration.md', null).filter(([name]) => name!.startsWith('`RELORA_'));
    const lines = documented.map((row) => row.map(plain).join(' | '));
    const expected = Object.values(settings).map(({ variable, default: value, range, reason }) =>
      [variable, value === '' ? 'none' : value, plain(range), plain(reason)].join(' | '),
    );
    expect(lines.sort()).toEqual(expected.sort());
  });
});

describe('docs/api.md', () => {
  it('shows every method of the contract that is not deprecated, and no other', () => {
    const folder = join(root, 'proto/relora/v1');
    const methods = readdirSync(folder).flatMap((file) => {
      const text = readFileSync(join(folder, file), 'utf8');
      const service = /^service (\w+)/m.exec(text)?.[1];
      const calls = [...text.matchAll(/^ {2}rpc (\w+)\(.*\n(?! {4}option deprecated)/gm)];
      return calls.map((match) => `${service}/${match[1]}`);
    });
    const text = readFileSync(join(root, 'docs/api.md'), 'utf8');
    const named = new Set([...text.matchAll(/relora\.v1\.(\w+\/\w+)/g)].map((match) => match[1]!));
    expect([...named].sort()).toEqual(methods.sort());
  });

  it('has every event of the journal, and no other', () => {
    const common = ['sequence', 'firstSequence', 'time', 'final', 'attempt'];
    const events = [...fieldsOf('JobEvent').keys()].filter((name) => !common.includes(name));
    expect(firstCells(rowsOf('api.md', 'Events')).sort()).toEqual(events.sort());
  });

  it('every reason that it names is in the catalog', () => {
    const text = readFileSync(join(root, 'docs/api.md'), 'utf8');
    const known = new Set(
      [serviceErrors, engineFailures, serverFailures, specWarnings].flatMap((table) => Object.keys(table)),
    );
    const named = firstCells(rowsOf('api.md', 'Errors')).filter((cell) => /^[A-Z_]+$/.test(cell));
    expect(named.length).toBeGreaterThan(0);
    expect(named.filter((reason) => !known.has(reason))).toEqual([]);
    expect(text).toContain('docs/errors.md');
  });
});

describe('every promise to an operator', () => {
  it.each(['durability.md', 'operations.md'])('of docs/%s names tests that are there', (file) => {
    const text = readFileSync(join(root, 'docs', file), 'utf8');
    const tables = text.split(/\n\n/).filter((part) => /^\|.*\| test +\|/.test(part));
    expect(tables.length).toBeGreaterThan(0);
    for (const row of tables.flatMap((table) => table.split('\n').slice(2))) {
      const named = [...row.matchAll(/`(test\/[\w./]+)`/g)].map((match) => match[1]!);
      expect(named.length, row).toBeGreaterThan(0);
      for (const path of named) expect(existsSync(join(root, path)), path).toBe(true);
    }
  });
});
