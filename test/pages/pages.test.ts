import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { blocksOf, isShown, type Block } from './page.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** In the order for newcomers: later pages use results of earlier ones. */
const firstPages = ['README.md', 'docs/weights.md', 'docs/finetune.md', 'docs/compare.md'];
/** Pages of the packages, as shown to people who install one. */
const packagePages = ['cli', 'sdk', 'server', 'engine', 'page'].map((name) => `${name}/README.md`);
const pages = [
  ...firstPages,
  ...packagePages,
  ...['CONTRIBUTING.md', ...readdirSync(join(root, 'docs')).map((name) => `docs/${name}`)].filter(
    (page) => page.endsWith('.md') && !firstPages.includes(page),
  ),
].map((page) => ({ page, blocks: blocksOf(page, readFileSync(join(root, page), 'utf8')) }));

/** A fresh checkout has nothing that git ignores. */
const ignored = /(^|\/)(node_modules|dist|\.git|\.relora|demo-output|coverage|build)$|\.(tsbuildinfo|log)$/;

let clone: string;
let environment: Record<string, string | undefined>;
const processes: ChildProcess[] = [];

/** A folder in which the checkout is kept, so that the next run of this test need not install and build it again. */
const keptFolder = process.env.RELORA_TEST_CHECKOUT;

beforeAll(() => {
  clone = keptFolder ?? mkdtempSync(join(tmpdir(), 'relora-clone-'));
  // Removes what earlier runs created, or what came from another state of the tree.
  rmSync(join(clone, '.relora'), { recursive: true, force: true });
  removeOthers('');
  cpSync(root, clone, {
    recursive: true,
    verbatimSymlinks: true,
    filter: (path) => !ignored.test(relative(root, path)),
  });
  const bin = join(clone, '.pages-bin');
  // The environment of a person's shell: without the settings of this test run.
  const own = Object.entries(process.env).filter(([name]) => !/^(RELORA|VITEST|NODE_|npm_)/i.test(name));
  environment = { ...Object.fromEntries(own), PATH: `${process.env.PATH}:${bin}` };
}, 600_000);

function removeOthers(folder: string): void {
  for (const entry of readdirSync(join(clone, folder), { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (ignored.test(path)) continue;
    if (!existsSync(join(root, path))) rmSync(join(clone, path), { recursive: true });
    else if (entry.isDirectory()) removeOthers(path);
  }
}

afterAll(async () => {
  await Promise.all(processes.map(stopServer));
  if (keptFolder === undefined) rmSync(clone, { recursive: true, force: true, maxRetries: 5 });
});

/** Creates what pages expect in the path: the programs of the packages, as after an installation, and a stand-in for grpcurl. */
function installPrograms(): void {
  const bin = join(clone, '.pages-bin');
  mkdirSync(bin, { recursive: true });
  for (const program of ['relora', 'relora-server']) {
    rmSync(join(bin, program), { force: true });
    symlinkSync(join(clone, 'node_modules/.bin', program), join(bin, program));
  }
  // The stand-in is placed where its modules can be found.
  for (const name of ['pages/grpcurl.ts', 'e2e/reflectedClient.ts']) {
    const source = readFileSync(join(root, 'test', name), 'utf8');
    const compilerOptions = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 };
    const { outputText } = ts.transpileModule(source, { compilerOptions });
    const file = name.replace(/^.*\//, '').replace('.ts', '.js');
    writeFileSync(join(bin, file), outputText.replace('../e2e/', './'));
  }
  writeFileSync(join(bin, 'package.json'), '{ "type": "module" }');
  const script = `#!/bin/sh\nexec "${process.execPath}" "${join(bin, 'grpcurl.js')}" "$@"\n`;
  writeFileSync(join(bin, 'grpcurl'), script, { mode: 0o755 });
}

/** The ports on the pages may be in use on this machine: each is mapped to a free one. */
const ports = { 50051: 0, 9464: 0 };

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts a command that keeps running, as its page says, and resolves when it answers. */
async function startServer({ text }: Block): Promise<ChildProcess> {
  for (const port of [50051, 9464] as const) ports[port] = await freePort();
  environment.RELORA_ADDRESS = `127.0.0.1:${ports[50051]}`;
  const server = spawn('bash', ['-euo', 'pipefail', '-c', text], {
    cwd: clone,
    env: {
      ...environment,
      RELORA_GRPC_ADDRESS: environment.RELORA_ADDRESS,
      RELORA_HTTP_ADDRESS: `127.0.0.1:${ports[9464]}`,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true, // in its own process group, which Ctrl-C in its terminal would end
  });
  processes.push(server);
  let log = '';
  await new Promise<void>((resolve, reject) => {
    const onData = (data: Buffer) => {
      log += data.toString();
      if (log.includes('Serving gRPC on')) resolve();
    };
    server.stdout.on('data', onData);
    server.stderr.on('data', onData);
    server.once('exit', () => reject(new Error(`The server of the page ended: ${log}`)));
  });
  return server;
}

async function stopServer(server: ChildProcess): Promise<void> {
  if (server.exitCode !== null || server.signalCode !== null) return;
  const exited = new Promise((resolve) => server.once('exit', resolve));
  process.kill(-server.pid!, 'SIGINT');
  await exited;
}

/** A block takes seconds, the installation a minute; on a busy machine much longer. */
const blockMsMax = 3_600_000;

async function run({ text }: Block): Promise<{ status: number | null; stdout: string; stderr: string }> {
  let script = text;
  for (const [port, free] of Object.entries(ports)) script = script.replaceAll(port, String(free));
  const child = spawn('bash', ['-euo', 'pipefail', '-c', script], {
    cwd: clone,
    env: environment,
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
  });
  const timer = setTimeout(() => process.kill(-child.pid!, 'SIGKILL'), blockMsMax);
  let [stdout, stderr] = ['', ''];
  child.stdout.on('data', (data: Buffer) => (stdout += data.toString()));
  child.stderr.on('data', (data: Buffer) => (stderr += data.toString()));
  const [status] = (await once(child, 'close')) as [number | null];
  clearTimeout(timer);
  return { status, stdout, stderr };
}

const where = ({ page, line }: Block) => `${page}:${line}`;

describe('in a fresh checkout, page after page', () => {
  test.each(pages.filter(({ blocks }) => blocks.some(({ language }) => language === 'sh')))(
    'every command of $page does what the page says',
    async ({ page, blocks }) => {
      const { RELORA_ADDRESS } = environment;
      // Later pages depend on what the first page builds and starts.
      if (page !== pages[0]!.page) expect(RELORA_ADDRESS, 'the first page has failed').toBeTypeOf('string');
      const portsBefore = { ...ports };
      const own: ChildProcess[] = [];
      for (const [index, block] of blocks.entries()) {
        if (block.notRun !== undefined) continue;
        if (block.file !== undefined) writeFileSync(join(clone, block.file), `${block.text}\n`);
        if (block.language !== 'sh') continue;
        if (block.isServer) {
          own.push(await startServer(block));
          continue;
        }
        const { status, stdout, stderr } = await run(block);
        const output = `${stdout}${stderr}`;
        expect({ block: where(block), isRefused: status !== 0, output }).toEqual({
          block: where(block),
          isRefused: block.isRefused,
          output: expect.any(String) as string,
        });
        // If this block installed the packages, the stand-in can be created.
        if (block.text.includes('npm run setup')) installPrograms();
        const next = blocks[index + 1];
        if (next?.language !== 'text' || next.notRun !== undefined) continue;
        if (!isShown(next.text, block.isRefused ? stderr : stdout))
          expect({ block: where(next), output }).toEqual({ block: where(next), output: next.text });
      }
      // The server of the first page is used by later ones; others end with their page.
      if (RELORA_ADDRESS === undefined) return;
      for (const server of own) await stopServer(server);
      environment.RELORA_ADDRESS = RELORA_ADDRESS;
      Object.assign(ports, portsBefore);
    },
    1_800_000,
  );

  test('the programs of the pages are TypeScript that compiles', () => {
    const names = Object.keys(
      // Fragments may use all values and types of the SDK without importing them.
      JSON.parse(
        execFileSync(process.execPath, ['-e', "console.log(JSON.stringify(require('@relora/sdk')))"], {
          cwd: clone,
          encoding: 'utf8',
        }),
      ) as object,
    );
    expect(names.length).toBeGreaterThan(10);
    const programs = pages.flatMap(({ blocks }) =>
      blocks.filter(({ language, notRun }) => language === 'ts' && notRun === undefined),
    );
    expect(programs.length).toBeGreaterThan(3);
    const folder = join(clone, '.pages-ts');
    mkdirSync(folder, { recursive: true });
    const files = programs.map((block, index) => {
      const isWhole = block.text.includes("from '@relora/sdk'");
      const head = `import { ReloraClient, isReloraError, ReloraError, ExportFormat, WeightType, type Job, type JobEvent } from '@relora/sdk';
        declare const client: ReloraClient; declare const job: Job; declare const spec: NonNullable<Job['spec']>;
        export const used = [isReloraError, ReloraError, ExportFormat, WeightType]; export type Used = JobEvent;\n`;
      const path = join(folder, `${index}.mts`);
      writeFileSync(path, `// ${where(block)}\n${isWhole ? '' : head}${block.text}\n`);
      return path;
    });
    const flags = '--noEmit --strict --module nodenext --target es2022 --types node --skipLibCheck'.split(
      ' ',
    );
    const { stdout } = spawnSync(
      process.execPath,
      [join(clone, 'node_modules/typescript/bin/tsc'), ...files, ...flags],
      { cwd: clone, encoding: 'utf8' },
    );
    expect(stdout).toBe('');
  }, 600_000);
});

/** Pages whose blocks are run by a separate test. */
const runElsewhere: Record<string, string> = { 'docs/reproducing.md': 'test/reproducing.test.ts' };

test('what is not run has a reason', () => {
  for (const path of Object.values(runElsewhere)) expect(existsSync(join(root, path)), path).toBe(true);
  const silent = pages
    .flatMap(({ blocks }) => blocks)
    .filter(
      ({ page, language, notRun, file }) =>
        !(page in runElsewhere) &&
        !['sh', 'ts', 'text'].includes(language) &&
        notRun === undefined &&
        file === undefined,
    );
  expect(silent.map(where)).toEqual([]);
});
