// What an attacker whose code runs in a child of the server could do: tries it, and writes the results into the job's folder.
import { execFileSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import {
  appendFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { connect } from 'node:net';
import { setPriority } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';

process.on('disconnect', () => process.exit(1));
process.on('message', (message) => {
  if (message.type === 'train') void attack(message.order);
});

const shown = (error) =>
  error.code ?? `${error.stderr ?? error.message}`.trim().split(' ').slice(-2).join(' ');

async function attempt(act) {
  try {
    await act();
    return 'done';
  } catch (error) {
    return shown(error);
  }
}

async function attack({ jobFolder, datasetFolders: [datasetFolder] }) {
  const { port, path } = JSON.parse(readFileSync(join(datasetFolder, 'targets.json'), 'utf8'));
  const dataFolder = join(jobFolder, '..', '..');
  const other = join(dataFolder, 'jobs', 'other-job');
  const server = process.ppid;
  const results = {
    environment: Object.keys(process.env).sort(),
    'read its data': await attempt(() => readdirSync(datasetFolder)),
    'write its folder': await attempt(() => writeFileSync(join(jobFolder, 'own'), 'mine')),
    'read the environment of the server': await attempt(() => readFileSync(`/proc/${server}/environ`)),
    'read the memory of the server': await attempt(() => readFileSync(`/proc/${server}/mem`, { length: 1 })),
    'read files that the server has open': await attempt(() => {
      for (const name of readdirSync(`/proc/${server}/fd`)) readlinkSync(`/proc/${server}/fd/${name}`);
    }),
    'read by the root of the server': await attempt(() => readFileSync(`/proc/${server}/root/etc/passwd`)),
    'read the store': await attempt(() => readFileSync(join(dataFolder, 'store.db'))),
    'read tokens': await attempt(() => readFileSync(join(dataFolder, 'tokens.json'))),
    'list all jobs': await attempt(() => readdirSync(join(dataFolder, 'jobs'))),
    'read another job': await attempt(() => readFileSync(join(other, 'secret'))),
    'change another job': await attempt(() => appendFileSync(join(other, 'secret'), 'x')),
    'change its data': await attempt(() => writeFileSync(join(datasetFolder, 'new'), 'x')),
    'write beside it': await attempt(() => mkdirSync(join(dataFolder, 'new'))),
    'change its program': await attempt(() => appendFileSync(new URL(import.meta.url), '')),
    'link out of its folder': await attempt(() => symlinkSync('/etc', join(jobFolder, 'link'))),
    'read by a program': await attempt(() =>
      execFileSync('/bin/cat', [join(other, 'secret')], { stdio: 'pipe' }),
    ),
    'read in a thread': await attempt(
      () =>
        new Promise((resolve, reject) => {
          const code = `require('fs').readFileSync(${JSON.stringify(join(other, 'secret'))})`;
          new Worker(code, { eval: true }).on('error', reject).on('exit', resolve);
        }),
    ),
    'call another machine': await attempt(
      () =>
        new Promise((resolve, reject) => {
          connect(port, '127.0.0.1', resolve).on('error', reject);
        }),
    ),
    'ask for a name': await attempt(
      () =>
        new Promise((resolve, reject) => {
          const socket = createSocket('udp4').on('error', reject);
          socket.send('x', 53, '127.0.0.1', (error) => (error ? reject(error) : resolve()));
        }),
    ),
    'use the socket of operators': await attempt(
      () => new Promise((resolve, reject) => connect(path, resolve).on('error', reject)),
    ),
    'signal the server': await attempt(() => process.kill(server, 0)),
    'slow the server down': await attempt(() => setPriority(server, 19)),
  };
  writeFileSync(join(jobFolder, 'results.json'), JSON.stringify(results));
  process.exit(1);
}
