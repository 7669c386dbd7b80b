import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Ajv } from 'ajv';
import { describe, expect, it, onTestFinished } from 'vitest';
import { parse, stringify } from 'yaml';
import { makeJobSchema } from '../../scripts/makeJobSchema.mjs';
import { tinySpec, tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { cli } from './commandLine.js';

const schemaFile = fileURLToPath(new URL('../../cli/job.schema.json', import.meta.url));
const isValid = new Ajv({ strict: false }).compile(JSON.parse(readFileSync(schemaFile, 'utf8')) as object);
const nowhere = '127.0.0.1:1';

function folder(): string {
  const path = mkdtempSync(join(tmpdir(), 'relora-run-file-'));
  onTestFinished(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

describe('the schema of run files', () => {
  it('is what contract and settings give: node scripts/makeJobSchema.mjs makes it again', () => {
    expect(readFileSync(schemaFile, 'utf8')).toBe(makeJobSchema());
  });

  it('takes what the command takes and finds slips of the pen', () => {
    const { dataset: _, ...spec } = tinySpec(20);
    expect([isValid({ id: 'tales', files: ['a.txt'], spec }), isValid.errors]).toEqual([true, null]);
    const wrong = [
      { spec: { ...spec, step_cuont: 3 } },
      { spec: { ...spec, kind: 'JOB_KIND_RELORE' } },
      { spec: { ...spec, adapter: { rank: 0 } } },
      { spec: { ...spec, seed: 1.5 } },
      { spec, lables: {} },
      {},
    ];
    expect(wrong.map((file) => isValid(file))).toEqual(wrong.map(() => false));
  });
});

describe('relora init', () => {
  it('writes a run file that the schema takes, and never over another', async () => {
    const place = folder();
    const relora = cli(place, nowhere);
    expect((await relora(['init'])).code).toBe(0);
    expect(isValid(parse(readFileSync(join(place, 'job.yaml'), 'utf8')))).toBe(true);
    expect(readFileSync(join(place, 'job.schema.json'), 'utf8')).toBe(readFileSync(schemaFile, 'utf8'));
    const again = await relora(['init']);
    expect([again.code, again.errors]).toEqual([2, expect.stringContaining('EEXIST')]);
  });
});

describe('relora run with a run file', () => {
  it('uploads, trains and fetches, with flags before the file', async () => {
    const { address, client } = await realServer();
    const place = folder();
    writeFileSync(join(place, 'tiny.txt'), tinyText());
    const { dataset: _, ...spec } = tinySpec(20);
    const file = {
      id: 'from-file',
      title: 'By a file',
      labels: { a: '1' },
      files: ['tiny.txt'],
      output: 'weights',
      spec,
    };
    writeFileSync(join(place, 'job.yaml'), stringify(file));
    const done = await cli(
      place,
      address,
    )(['run', 'job.yaml', '--title', 'By a flag', '--label', 'b=2', '--seed', '9']);
    expect([done.code, done.errors]).toEqual([0, expect.any(String)]);
    const job = await client.getJob('jobs/from-file');
    expect([job.displayName, job.labels, job.spec!.seed, job.spec!.stepCount]).toEqual([
      'By a flag',
      { a: '1', b: '2' },
      9,
      20,
    ]);
    expect(existsSync(join(place, 'weights', 'model.safetensors'))).toBe(true);

    const yaml = await cli(place, address)(['--print', 'yaml', 'describe', 'from-file']);
    const json = await cli(place, address)(['--json', 'describe', 'from-file']);
    expect(parse(yaml.output)).toEqual(json.json()[0]);
  });

  it('takes tokens in place of steps', async () => {
    const { address, client } = await realServer();
    const place = folder();
    const { dataset } = tinySpec(20);
    await client.uploadDataset({
      datasetId: dataset.slice('datasets/'.length),
      files: [{ content: tinyText() }],
    });
    const { step_count: _, ...rest } = tinySpec(20);
    const estimate = async (spec: object, ...flags: string[]) => {
      writeFileSync(join(place, 'spec.json'), JSON.stringify(spec));
      const { json } = await cli(place, address)(['estimate', '--spec', 'spec.json', '--json', ...flags]);
      return (json()[0] as { spec: { stepCount: number } }).spec.stepCount;
    };
    expect(await estimate(tinySpec(20), '--tokens', String(40 * 4 * 32))).toBe(40);
    expect(await estimate({ ...rest, token_count: 40 * 4 * 32 }, '--steps', '20')).toBe(20);
  });

  it('says what is wrong with a flag before it uploads, and uploads nothing for a mixture', async () => {
    const { address, client } = await realServer();
    const place = folder();
    const relora = cli(place, address);
    writeFileSync(join(place, 'tiny.txt'), tinyText());
    const { dataset: _, ...spec } = tinySpec(20);
    writeFileSync(join(place, 'job.yaml'), stringify({ files: ['tiny.txt'], spec }));
    const wrong = await relora(['run', 'job.yaml', '--kind', 'foo']);
    expect([wrong.code, wrong.errors]).toEqual([2, expect.stringMatching(/^--kind is one of/)]);
    const mixed = await relora(['run', 'job.yaml', '--mixture', 'none', '--mixture', 'neither']);
    expect([mixed.code, mixed.errors]).toEqual([3, expect.stringContaining('datasets/none')]);
    const uploaded = [];
    for await (const { name } of client.listDatasets()) uploaded.push(name);
    expect(uploaded).toEqual([]);
  });

  it('says what is wrong with a file before anything is sent', async () => {
    const place = folder();
    const errorOf = async (content: string, expected = 2): Promise<string> => {
      writeFileSync(join(place, 'job.yaml'), content);
      const { code, errors } = await cli(place, nowhere)(['run', 'job.yaml']);
      expect(code).toBe(expected);
      return errors;
    };
    expect(await errorOf('spec: {}\nspecc: {}\n')).toContain(
      'specc is not a field of a run file; the fields are id, title',
    );
    expect(await errorOf('spec: {}\nfiles: corpus.txt\n')).toContain(
      'files expected a list of paths, got "corpus.txt"',
    );
    expect(await errorOf('title: x\n')).toContain('spec expected an object, a JobSpec, got nothing');
    expect(await errorOf('spec: {}\nspec: {}\n')).toContain('Map keys must be unique');
    expect(await errorOf('[1')).toContain('job.yaml could not be read');
    expect(await errorOf('- 1\n')).toContain('must be an object with the field spec');
    expect(await errorOf('spec:\n  step_cuont: 3\n', 3)).toMatch(/step_cuont/);
  });
});

describe('relora completion', () => {
  it('completes commands, options and files in bash', async () => {
    const place = folder();
    const relora = cli(place, nowhere);
    const { output } = await relora(['completion', 'bash']);
    writeFileSync(join(place, 'complete.sh'), output);
    writeFileSync(join(place, 'job.yaml'), '');
    const complete = (...words: string[]): string[] =>
      execFileSync(
        'bash',
        [
          '-c',
          `source complete.sh; COMP_WORDS=(relora ${words.map((word) => `"${word}"`).join(' ')}); COMP_CWORD=${words.length}; _relora; printf '%s\\n' "\${COMPREPLY[@]}"`,
        ],
        { cwd: place, encoding: 'utf8' },
      )
        .split('\n')
        .filter(Boolean)
        .sort();
    expect(complete('comp')).toEqual(['compare', 'completion']);
    expect(complete('run', '--cyc')).toEqual(['--cycle', '--cycle-growth']);
    expect(complete('--json', 'run', '--pri')).toEqual(['--print']);
    expect(complete('run', 'jo')).toEqual(['job.yaml']);
  });

  it('names every command for zsh and fish, in words that end no quotation', async () => {
    const relora = cli(folder(), nowhere);
    const names = [...(await relora(['--help'])).output.matchAll(/^ {2}([a-z][a-z-]*)(?:\||\s)/gm)].map(
      (match) => match[1]!,
    );
    expect(names.length).toBeGreaterThan(15);
    for (const shell of ['zsh', 'fish']) {
      const { output } = await relora(['completion', shell]);
      for (const name of names.filter((each) => each !== 'help')) expect(output, name).toContain(name);
      for (const line of output.split('\n')) expect(line.split("'").length % 2, line).toBe(1);
    }
    const unknown = await relora(['completion', 'csh']);
    expect([unknown.code, unknown.errors]).toEqual([2, expect.stringContaining('bash, zsh, fish')]);
  });
});
