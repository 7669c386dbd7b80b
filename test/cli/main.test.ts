import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http2';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { JobState } from '@relora/sdk';
import { Status } from 'nice-grpc';
import { expect, onTestFinished, test } from 'vitest';
import { temporaryFolder, tinySpec, tinyText } from '../e2e/tinyJob.js';
import { brokenServer, refusal } from '../sdk/brokenServer.js';
import { realServer } from '../sdk/realServer.js';
import { cli, main } from './commandLine.js';

test('every command against a server, for people and for programs', async () => {
  const { address } = await realServer();
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'tiny.txt'), tinyText());
  writeFileSync(join(folder, 'spec.json'), JSON.stringify(tinySpec(20)));

  expect((await relora(['info'])).output).toMatch(
    /^ReLoRA server [\d.]+ at 127\.0\.0\.1:\d+: 0 of 1 slots busy/,
  );
  expect((await relora(['info', '--json'])).json()[0]).toHaveProperty('devices');
  expect((await relora(['list'])).output).toBe('No jobs.\n');
  expect((await relora(['weights', 'list', '--json'])).json()).toEqual([{ weights: [] }]);

  const uploaded = await relora(['upload', 'tiny.txt', '--id', 'tiny-text', '--held-out', '0.1']);
  expect(uploaded).toMatchObject({ code: 0, errors: '' });
  expect(uploaded.output).toMatch(/^datasets\/tiny-text is ready: .* tokens to train on, .* held out\.\n$/);

  writeFileSync(join(folder, 'rows'), '{"text": "a b", "score": NaN}\n{"text": null}\n{"text": "c d"}\n');
  const rows = ['upload', 'rows', '--id', 'some-rows', '--held-out', '0'];
  expect((await relora(rows)).errors).toContain('rows, line 2 at byte 30: expected text in "text", got null');
  const skipping = [...rows.slice(0, 3), 'other-rows', '--skip-invalid', '50%', '--format', 'jsonl'];
  expect((await relora(skipping)).output).toContain(
    'Warning ROWS_SKIPPED: 1 of 3 rows were left out; the first: rows, line 2 at byte 30: expected text',
  );
  expect((await relora([...rows, '--format', 'xml'])).errors).toContain(
    '--format: expected one of text, jsonl, json, csv, parquet, got xml',
  );

  expect((await relora(['estimate', '--spec', 'spec.json'])).output).toMatch(
    /^restarts +1, before steps 20$/m,
  );
  const lean = [
    '--precision',
    'int8-base',
    '--head-precision',
    'int8',
    '--recomputation',
    'blocks',
    '--moments',
    'int8',
    '--graph',
    'separate',
  ];
  const estimated = (await relora(['estimate', '--spec', 'spec.json', ...lean])).output;
  expect(estimated).toMatch(
    /^memory +\d+ MB at its peak \((steps .+|while weights are loaded or packed)\), [\d.]+ [MGT]B allowed$/m,
  );
  expect(estimated).toMatch(
    /^computed with +precision int8-base, head int8, recomputation blocks, moments int8, graph separate$/m,
  );
  const byMuon = ['--optimizer', 'muon', '--adapter-optimizer', 'lora-muon', '--initialisation', 'old-span'];
  const estimatedByMuon = (await relora(['estimate', '--spec', 'spec.json', ...byMuon])).output;
  expect(estimatedByMuon).toMatch(/^computed with .*, warm start by muon, adapters by lora-muon$/m);
  expect(estimatedByMuon).toMatch(/^Muon +adds \d+ % to the time of steps of the warm start$/m);
  expect(estimatedByMuon).toMatch(/^LoRA-Muon +adds \d+ % to the time of steps with adapters$/m);
  expect((await relora(['estimate', '--spec', 'spec.json', '--optimizer', 'sgd'])).errors).toContain(
    '--optimizer is one of adamw, muon, apollo-mini, not "sgd"',
  );
  expect((await relora(['estimate', '--spec', 'spec.json', '--graph', 'both'])).errors).toContain(
    '--graph is one of auto, separate, merged, weight-gradient, not "both"',
  );
  expect((await relora(['estimate', '--spec', 'spec.json', '--head-precision', 'int4'])).errors).toContain(
    '--head-precision is one of same, int8, not "int4"',
  );
  expect((await relora(['create', '--spec', 'spec.json', '--validate-only'])).output).toMatch(
    /^The job is valid\.\n/,
  );
  const created = await relora(
    ['create', '--spec', '-', '--id', 'job-one', '--label', 'a=b', 'c=d', '--title', 'One'],
    {
      input: JSON.stringify(tinySpec(20)),
    },
  );
  expect(created).toMatchObject({ code: 0, output: 'jobs/job-one is queued.\n' });

  const watched = await relora(['watch', 'job-one']);
  expect(watched.code).toBe(0);
  for (const line of [
    /^jobs\/job-one One: running/m,
    /^step 30\/30 {2}loss /m,
    /^merge 1 before step 20: /m,
    /^artifact jobs/m,
  ])
    expect(watched.output).toMatch(line);
  const events = (await relora(['watch', 'job-one', '--json'])).json();
  expect(events.map(({ sequence }) => sequence)).toEqual(events.map((_, index) => index + 1));
  expect(events.at(-1)).toMatchObject({ kind: 'state', final: true });
  const labeled = await relora(['watch', '--label', 'a=b']);
  expect(labeled.code).toBe(0);
  expect(labeled.output).toMatch(/^jobs\/job-one {2}merge 1 before step 20: /m);
  expect((await relora(['watch', '--label', 'a=b', '--json'])).json()).toHaveLength(events.length);

  expect((await relora(['list', '--label', 'a=b', '--state', 'succeeded'])).output).toMatch(
    /^jobs\/job-one +succeeded +30\/30/m,
  );
  expect((await relora(['list', '--json', '--state', 'failed'])).json()).toEqual([{ jobs: [] }]);
  const described = (await relora(['describe', 'job-one'])).output;
  for (const line of [
    /^model +2 layers of 32, 2 heads$/m,
    /^kind +relora, 10 steps in full rank first, rank 4, alpha \d+, a restart every 10 of 20 steps$/m,
    /^batch +4 sequences of 32 tokens$/m,
    /^learning rate +0\.001 at its highest, jagged-cosine, warm-up of 0 steps$/m,
    /^label c +d$/m,
  ])
    expect(described).toMatch(line);
  expect((await relora(['download', 'job-one', 'out'])).output).toMatch(
    /SHA-256 verified:\n {2}out\/config\.json\n/,
  );
  expect(readdirSync(join(folder, 'out'))).toContain('model.safetensors');
  expect((await relora(['generate', 'job-one', '--prompt', 'Line ', '--tokens', '4'])).output).toMatch(
    /^Line [^]*\n$/,
  );
  expect((await relora(['generate', 'job-one', '--tokens', '4', '--json'])).json().at(-1)).toHaveProperty(
    'finishReason',
  );

  const long = await relora([
    'create',
    '--spec',
    'spec.json',
    '--steps',
    '100000',
    '--mask-documents',
    '--id',
    'job-long',
    '--json',
  ]);
  expect(long.json()[0]).toMatchObject({ name: 'jobs/job-long' });
  expect((await relora(['describe', 'job-long'])).output).toMatch(
    /^batch +4 sequences of 32 tokens, documents masked$/m,
  );
  expect((await relora(['pause', 'job-long'])).code).toBe(0);
  expect((await relora(['resume', 'job-long'])).output).toMatch(/^jobs\/job-long is /);
  const interrupted = await relora(['watch', 'job-long'], { interruptAt: 'step ' });
  expect(interrupted).toMatchObject({
    code: 130,
    errors: 'jobs/job-long keeps running. To watch it again: relora watch jobs/job-long\n',
  });
  expect((await relora(['cancel', 'job-long'])).code).toBe(0);
  expect(await relora(['watch', 'job-long'])).toMatchObject({
    code: 1,
    errors: expect.stringContaining('was cancelled') as string,
  });

  for (const flag of ['--omit-steps', '--skip-steps'])
    expect(
      (await relora(['estimate', '--spec', 'spec.json', flag, '3-5', '--json'])).json()[0],
    ).toMatchObject({
      spec: { omittedSteps: [{ first: 3, last: 5 }] },
    });

  const forked = await relora(['fork', 'job-one', '--steps', '40', '--id', 'job-more', '--moments', 'int8']);
  expect(forked.output).toBe('jobs/job-more is queued and begins at step 30 of jobs/job-one.\n');
  expect((await relora(['describe', 'job-more'])).output).toMatch(/^begun at +step 30 of jobs\/job-one$/m);

  const ran = await relora([
    'run',
    '--spec',
    'spec.json',
    '--file',
    'tiny.txt',
    '--vocabulary',
    '300',
    '--output',
    'weights',
  ]);
  expect(ran.code).toBe(0);
  expect(ran.output).toMatch(
    /^jobs\/\S+ is queued\.\n[^]*\nWeights are in weights: \d+ files, SHA-256 verified\.\n$/,
  );
  expect(JSON.parse(readFileSync(join(folder, 'weights', 'config.json'), 'utf8'))).toMatchObject({
    model_type: 'llama',
    vocab_size: 300,
  });
});

test('what is wrong is said, with the exit code that scripts are promised', async () => {
  const { address } = await realServer();
  const folder = temporaryFolder();
  const relora = cli(folder, address);
  writeFileSync(join(folder, 'slip.json'), '{ "steps": 5, "adapter": { "rnk": 3 } }');
  writeFileSync(join(folder, 'bad.txt'), Buffer.from([0xff, 0xfe]));
  // On a busy machine the time limit is reached before the connection is refused.
  const notThere = /127\.0\.0\.1:1|No answer within 500 ms/;
  const cases: [args: string[], code: number, message: string | RegExp][] = [
    [['bogus'], 2, "unknown command 'bogus'"],
    [['watch'], 2, 'Name one or more jobs, or use --label, or --new for everything that happens'],
    [['watch', '--label', 'a=b', '--after', '3'], 2, '--after can only be used with a single job'],
    [['create', '--steps', 'many'], 2, '--steps: Expected a whole number, got "many"'],
    [['create', '--spec', 'none.json'], 2, 'none.json could not be read: no such file or folder'],
    [['create', '--spec', '-'], 2, 'Standard input is not JSON'],
    [['create', '--kind', 'foo'], 2, '--kind is one of relora, lora, full-rank'],
    [['create', '--label', 'x'], 2, 'Labels are key=value'],
    [
      ['list', '--state', 'running', 'foo'],
      2,
      '--state is one of queued, starting, running, paused, succeeded, failed, cancelled, not "foo"',
    ],
    [['job', 'export', 'job-none'], 2, 'Give either a folder or --output'],
    [['list', '--timeout', '-5'], 2, '--timeout: Expected a number above 0, got "-5"'],
    [['list', '--limit', '0'], 2, '--limit: Expected a whole number above 0'],
    [['run', 'none.yaml'], 2, 'none.yaml could not be read: no such file or folder'],
    [['upload', 'none.txt'], 2, 'none.txt cannot be read: there is no such file'],
    [['upload', '.'], 2, '. cannot be read: it is a folder'],
    [['replay', '--bundle', 'none.json'], 2, 'none.json: no such file or folder'],
    [['weights', 'upload', 'none'], 2, 'none: no such file or folder'],
    [['upload', 'bad.txt'], 1, 'bad.txt, byte 0: expected UTF-8'],
    [['describe', 'job-none'], 3, 'Job job-none does not exist'],
    [['generate', 'job-none', '--prompt', 'x'], 3, 'Job job-none does not exist'],
    [['create', '--preset', 'demo', '--dataset', 'datasets/none', '--steps', '10'], 3, ''],
    [['--address', 'grpc://127.0.0.1:1', 'list'], 2, 'is malformed: expected host:port'],
    [['--address', '127.0.0.1:1', '--timeout', '0.5', 'info'], 4, notThere],
    [['--address', '127.0.0.1:1', '--timeout', '0.5', 'list'], 4, notThere],
  ];
  await Promise.all(
    cases.map(async ([args, code, message]) => {
      // Alternates between output for people and for programs.
      const isJson = cases.findIndex(([other]) => other === args) % 2 === 0;
      const { errors, ...rest } = await relora(isJson ? [...args, '--json'] : args);
      expect({ args, ...rest }).toMatchObject({ args, code, output: '' });
      if (isJson) expect(JSON.parse(errors)).toMatchObject({ error: { exitCode: code } });
      expect(isJson ? (JSON.parse(errors) as { error: { message: string } }).error.message : errors).toMatch(
        message,
      );
    }),
  );
  expect((await relora(['create', '--spec', 'slip.json'])).errors).toBe(
    'The request was refused:\n  spec.steps        there is no such field\n  spec.adapter.rnk  there is no such field\n',
  );
});

test('a server that is not there is waited for as long as asked, and it is said', async () => {
  const relora = cli(temporaryFolder(), '127.0.0.1:1');
  const start = performance.now();
  const { code, errors } = await relora(['list', '--timeout', '2']);
  expect(performance.now() - start).toBeGreaterThan(1500);
  expect(code).toBe(4);
  expect(errors).toMatch(
    /^\S+ListJobs failed and is repeated: .*ECONNREFUSED.*\. Trying again until --timeout; Ctrl-C ends it\.\nNo server answers at 127\.0\.0\.1:1: .*\nStart one with/,
  );
});

test('a command whose messages nobody reads ends as it would have', async () => {
  const { PATH } = process.env;
  const child = spawn(process.execPath, [main, 'list', '--timeout', '0.5'], {
    env: { PATH, RELORA_ADDRESS: '127.0.0.1:1' },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  child.stderr.destroy();
  expect(await once(child, 'close')).toEqual([4, null]);
});

test.each(['table', 'json'])('failures from before the store changed do not count: %s', async (form) => {
  let isChanged = false;
  const ended = (to: JobState) => ({ sequence: 1, final: true, state: { to } });
  const { address } = await brokenServer({
    getJob: async () => ({ job: { name: 'jobs/job-1' } }),
    async *watchJobs(_, context) {
      yield { cursor: isChanged ? 'new.1' : 'old.1' };
      yield { job: 'jobs/job-1', event: ended(isChanged ? JobState.SUCCEEDED : JobState.FAILED) };
      if (isChanged) return;
      isChanged = true;
      throw refusal(context, Status.FAILED_PRECONDITION, 'STORE_CHANGED');
    },
  });
  const watched = await cli(temporaryFolder(), address)(['watch', 'job-1', 'job-2', '--print', form]);
  expect(watched.code).toBe(0);
});

test('every command is as patient as the SDK unless asked', async () => {
  const timeouts: unknown[] = [];
  const server = createServer().on('stream', (stream, headers) => {
    timeouts.push(headers['grpc-timeout']);
    const grpcStatus = { 'content-type': 'application/grpc', 'grpc-status': 5 };
    stream.respond({ ':status': 200, ...grpcStatus }, { endStream: true });
  });
  await new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => void server.close());
  const relora = cli(temporaryFolder(), `127.0.0.1:${(server.address() as AddressInfo).port}`);
  expect((await relora(['describe', 'jobs/job-1'])).code).toBe(3);
  const leftMs = Number(/^(\d+)m$/.exec(String(timeouts[0]))?.[1]);
  expect(leftMs).toBeGreaterThan(30_000);
  expect(leftMs).toBeLessThanOrEqual(60_000);
});

test('files on the server become a data set', async () => {
  const allowed = temporaryFolder();
  writeFileSync(join(allowed, 'tiny.txt'), tinyText());
  const { address, client } = await realServer({ RELORA_ALLOWED_FOLDERS: allowed });
  const relora = cli(temporaryFolder(), address);
  const uploaded = await relora(['upload', '--on-server', join(allowed, 'tiny.txt'), '--id', 'there']);
  expect(uploaded).toMatchObject({ code: 0, errors: '' });
  expect(uploaded.output).toMatch(/^datasets\/there is ready/);
  const files = [{ serverPath: join(allowed, 'tiny.txt') }];
  const dataset = await client.uploadDataset({ files });
  expect(dataset.files).toMatchObject([{ fileName: 'tiny.txt' }]);
});

test('the help of every command names what it takes', async () => {
  const relora = cli(temporaryFolder(), '127.0.0.1:1');
  const { output } = await relora(['--help']);
  const commands = [...output.matchAll(/^ {2}([a-z]+) (?:\[|<| )/gm)].map((match) => match[1]!);
  expect(commands).toEqual(
    expect.arrayContaining(
      'run create watch list describe pause resume cancel compare sweep estimate restarts bundle replay download upload generate info'.split(
        ' ',
      ),
    ),
  );
  for (const command of commands)
    expect(await relora([command, '--help'])).toMatchObject({ code: 0, errors: '' });
});
