// Installs and builds what is missing or out of date. Runs before `npm test`, `npm run demo` and `npm run bench`, so it may use only Node
// itself.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { systemName } from '../engine/systemName.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const [major, minor] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19))
  fail(`Node ${process.versions.node} is too old: 20.19 or newer is needed`);
if (process.platform === 'win32')
  fail(
    'The server is neither built nor run on Windows: use WSL2 or Docker. SDK and CLI run there, from their packages',
  );

install();
build();

function install() {
  const lockHash = createHash('sha256')
    .update(readFileSync(join(root, 'package-lock.json')))
    .digest('hex');
  // Some packages contain platform-specific code: a folder shared by two systems is installed again for the other one.
  const installed = `${lockHash} ${systemName()}`;
  const stamp = join(root, 'node_modules', '.relora-installed');
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === installed) return;
  console.log('Installing packages …');
  // `ci` would first delete what exists. No package needs its install script, so none is run.
  const command = existsSync(join(root, 'node_modules')) ? 'install' : 'ci';
  npm(command, '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error');
  writeFileSync(stamp, installed);
}

function build() {
  const first = !existsSync(join(root, 'server', 'dist', 'main.js'));
  if (first) console.log('Building (TypeScript and the native backend) …');
  npm('run', '--silent', 'build');
}

function npm(...args) {
  // npm_execpath is the npm that runs this script; without it (`node scripts/setup.mjs`) the one on the path is used.
  const npmCli = process.env.npm_execpath;
  const [command, first] = npmCli ? [process.execPath, [npmCli]] : ['npm', []];
  try {
    execFileSync(command, [...first, ...args], { cwd: root, stdio: 'inherit' });
  } catch {
    fail(`"npm ${args.join(' ')}" failed; its output above says why`);
  }
}

function fail(message) {
  console.error(message);
  process.exit(1);
}
