import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo, type Server } from 'node:net';
import { getPriority } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pino } from 'pino';
import { describe, expect, it, onTestFinished } from 'vitest';
import { readConfig } from '../../server/dist/config.js';
import { sandboxFinding } from '../../server/dist/doctor/machine.js';
import { Confinement } from '../../server/dist/trainer/confinement.js';
import { trainerEntry } from '../../server/dist/trainer/trainerProcess.js';
import { allEvents, jobWhen, openParts, readyDataset, submit, temporaryFolder } from './parts.js';
import { sharesFiles } from './testStore.js';

const hostile = fileURLToPath(new URL('./hostileTrainer.mjs', import.meta.url));
const { means } = new Confinement(readConfig({}));

async function listening(server: Server, at: number | string): Promise<void> {
  onTestFinished(() => void server.close());
  await new Promise<void>((resolve) => server.listen(at as number, resolve));
}

/** Runs a hostile job; `done` lists what it managed to do. */
async function attack(sandbox: string): Promise<Record<string, string | string[]>> {
  const dataFolder = temporaryFolder();
  const parts = await openParts(
    { RELORA_SANDBOX: sandbox, RELORA_ATTEMPTS_WITHOUT_PROGRESS_MAX: '1' },
    dataFolder,
    hostile,
  );
  await readyDataset(parts);
  const [tcp, socket] = [createServer(), createServer()];
  await listening(tcp, 0);
  const path = join(dataFolder, 'some.sock');
  await listening(socket, path);
  const prepared = parts.datasets.preparedFolder('text');
  mkdirSync(prepared, { recursive: true });
  writeFileSync(
    join(prepared, 'targets.json'),
    JSON.stringify({ port: (tcp.address() as AddressInfo).port, path }),
  );
  mkdirSync(join(dataFolder, 'jobs/other-job'), { recursive: true });
  writeFileSync(join(dataFolder, 'jobs/other-job/secret'), 'secret');
  writeFileSync(join(dataFolder, 'tokens.json'), 'secret');
  await parts.supervisor.start();
  const { id } = await submit(parts);
  const ended = await jobWhen(parts, id, ({ state }) => state === 'failed');
  const results = join(dataFolder, 'jobs', id, 'results.json');
  if (!existsSync(results))
    throw new Error(`${ended.stateReason} ${JSON.stringify(await allEvents(parts, id))}`);
  return JSON.parse(readFileSync(results, 'utf8')) as Record<string, string | string[]>;
}

describe('a hostile job', () => {
  it.skipIf(means === null)('does nothing but what a job needs, in no way', async () => {
    const priority = getPriority();
    const { environment, ...results } = await attack('required');
    expect(results).toEqual({
      'read its data': 'done',
      'write its folder': 'done',
      'read the environment of the server': 'EACCES',
      'read the memory of the server': 'EACCES',
      'read files that the server has open': 'EACCES',
      'read by the root of the server': 'EACCES',
      'read the store': sharesFiles ? 'ENOENT' : 'EACCES',
      'read tokens': 'EACCES',
      'list all jobs': 'EACCES',
      'read another job': 'EACCES',
      'change another job': 'EACCES',
      'change its data': 'EACCES',
      'write beside it': 'EACCES',
      'change its program': 'EACCES',
      'link out of its folder': 'EACCES',
      'read by a program': 'Permission denied',
      'read in a thread': 'EACCES',
      'call another machine': 'EACCES',
      'ask for a name': 'EACCES',
      'use the socket of operators': 'EACCES',
      'signal the server': 'EPERM',
      'slow the server down': 'ERR_SYSTEM_ERROR',
    });
    expect(getPriority()).toBe(priority);
    // Only named variables: none of them is a secret, whatever the server's environment is.
    const allowed =
      /^(PATH|HOME|TZ|TMPDIR|LANG|LC_\w+|LD_LIBRARY_PATH|VIRTUAL_ENV|NODE_PATH|RELORA_NATIVE|CUDA_\w+|NVIDIA_\w+|TF_\w+|NODE_CHANNEL_\w+)$/;
    expect((environment as string[]).filter((name) => !allowed.test(name))).toEqual([]);
  });

  it('could do most of it where the sandbox is off: the test would see it', async () => {
    const results = await attack('off');
    const store = sharesFiles ? [] : ['read the store'];
    for (const what of [...store, 'change another job', 'call another machine', 'signal the server'])
      expect(results[what], what).toBe('done');
  });
});

/** As in a container: an unprivileged user without capabilities, and without a way to get any. */
const bare = ['--bounding-set=-all', '--inh-caps=-all', '--clear-groups', '--no-new-privs'];
const setpriv = (...words: string[]) => spawnSync('setpriv', [...bare, ...words], { encoding: 'utf8' });
const hasSetpriv = process.getuid?.() === 0 && setpriv('true').status === 0;

it.skipIf(means === null || !hasSetpriv)('children are confined without any capability, too', () => {
  const { execPath, execArgv } = new Confinement(readConfig({ RELORA_SANDBOX: 'required' })).launch(
    trainerEntry,
    { read: [], write: [], cards: false },
  );
  expect(setpriv('--reuid=65534', '--regid=65534', execPath, '--probe').stdout.trim()).toBe(means);
  const run = setpriv(
    '--reuid=65534',
    '--regid=65534',
    execPath,
    ...execArgv,
    '-e',
    `
    const { readFileSync } = require('node:fs');
    try { readFileSync('/etc/passwd'); } catch ({ code }) { console.log(code); }
    require('node:net').connect(1, '127.0.0.1').on('error', ({ code }) => console.log(code));
  `,
  );
  expect(run.stdout.split('\n')).toEqual(['EACCES', 'EACCES', '']);
});

describe('where children cannot be confined', () => {
  const without = (sandbox: string): Confinement =>
    new Confinement(readConfig({ RELORA_SANDBOX: sandbox }), '/nowhere/confine');

  it('the server says so, or does not start, as the settings have it', () => {
    const lines: string[] = [];
    const log = pino({}, { write: (line: string) => lines.push(line) });
    without('auto').report(log);
    expect(lines.join('')).toMatch(/Children are not confined .*\/nowhere\/confine is not there/);
    expect(() => without('required').report(log)).toThrow(
      'RELORA_SANDBOX is required, but children cannot be confined: /nowhere/confine is not there',
    );
    expect(without('auto').launch('/entry.js', { read: [], write: [], cards: false })).toEqual({
      execPath: process.execPath,
      execArgv: [],
    });
  });

  it('the doctor warns of it', () => {
    expect(sandboxFinding(readConfig({ RELORA_SANDBOX: 'off' }))).toMatchObject({ state: 'warning' });
    if (means !== null)
      expect(sandboxFinding(readConfig({ RELORA_SANDBOX: 'required' }))).toMatchObject({
        state: 'ok',
        message: `children are confined by ${means}`,
      });
  });
});
