import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { tinyText } from '../e2e/tinyJob.js';
import { realServer } from '../sdk/realServer.js';
import { temporaryFolder } from '../server/parts.js';

const main = fileURLToPath(new URL('../../cli/dist/main.js', import.meta.url));
const preload = new URL('./windows.mjs', import.meta.url).href;

/** The command line with the rules of Windows; its server runs on this system. */
function person(at: string) {
  return async (args: string[], settings: Record<string, string> = {}) => {
    const child = spawn(process.execPath, ['--import', preload, main, ...args], {
      cwd: at,
      env: { PATH: process.env.PATH, HOME: at, APPDATA: 'C:\\AppData', ...settings },
    });
    child.stdin.end('');
    const [output, errors, [code]] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      once(child, 'close') as Promise<[number]>,
    ]);
    return { code, output, errors };
  };
}

it('the command line uploads, trains and fetches under the rules of Windows', async () => {
  const { address, client } = await realServer();
  const at = temporaryFolder();
  const relora = person(at);

  // The folder in which Windows keeps a user's settings. The mode that Windows shows for every file does not cause an error.
  expect(await relora(['login', address, '--no-token'])).toMatchObject({ code: 0, errors: '' });
  expect(existsSync(join(at, 'C:\\AppData\\relora\\profiles.json'))).toBe(true);
  expect((await relora(['profiles'])).output).toContain(address);

  // For a path with a drive the server gets only the file name.
  writeFileSync(join(at, 'C:\\texts\\tiny.txt'), tinyText());
  const upload = await relora(['upload', 'C:\\texts\\tiny.txt', '--id', 'tiny-text']);
  expect(upload).toMatchObject({ code: 0 });
  const dataset = await client.getDataset('datasets/tiny-text');
  expect(dataset?.files.map(({ fileName }) => fileName)).toEqual(['tiny.txt']);

  const model = 'out\\model';
  const run = await relora([
    ...['run', '--id', 'first', '--dataset', 'datasets/tiny-text', '--preset', 'demo', '--warm-start', '2'],
    ...[
      '--steps',
      '4',
      '--cycle',
      '2',
      '--rank',
      '4',
      '--batch',
      '2',
      '--sequence-length',
      '32',
      '--output',
      model,
    ],
  ]);
  expect(run).toMatchObject({ code: 0 });
  const weights = join(at, `${model}\\model.safetensors`);
  expect(statSync(weights).size).toBeGreaterThan(1000);
  expect(JSON.parse(readFileSync(join(at, `${model}\\config.json`), 'utf8'))).toMatchObject({
    architectures: ['LlamaForCausalLM'],
  });
});
