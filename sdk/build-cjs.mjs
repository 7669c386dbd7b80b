// Compiles the SDK as CommonJS, too, into dist/cjs, for `require`. Runs before every demo and test, so it does nothing if the
// sources have not changed; tsc would have to read them all to find that out.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const folder = fileURLToPath(new URL('.', import.meta.url));
const require = createRequire(import.meta.url);
const stamp = `${folder}dist/cjs/.sources`;
const hash = createHash('sha256').update(require('typescript/package.json').version);
const sources = readdirSync(`${folder}src`, { recursive: true }).filter((name) => name.endsWith('.ts'));
for (const name of ['tsconfig.cjs.json', 'build-cjs.mjs', ...sources.sort().map((name) => `src/${name}`)]) {
  hash.update(`\0${name}\0`).update(readFileSync(folder + name));
}
const digest = hash.digest('hex');
if (existsSync(stamp) && readFileSync(stamp, 'utf8') === digest) process.exit(0);

rmSync(`${folder}dist/cjs`, { recursive: true, force: true }); // including the output of deleted sources
mkdirSync(`${folder}dist/cjs`, { recursive: true });
// The nearest package.json determines how Node reads .js files.
writeFileSync(`${folder}dist/cjs/package.json`, '{ "type": "commonjs" }\n');
const tsc = require.resolve('typescript/bin/tsc');
execFileSync(process.execPath, [tsc, '-p', `${folder}tsconfig.cjs.json`], { stdio: 'inherit' });
writeFileSync(stamp, digest);
