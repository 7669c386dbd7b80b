// Compiles the SDK once more as CommonJS into dist/cjs, for `require`.
import { mkdirSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { execFileSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const folder = fileURLToPath(new URL('.', import.meta.url));
const tsc = createRequire(import.meta.url).resolve('typescript/bin/tsc');
mkdirSync(`${folder}dist/cjs`, { recursive: true });
// The nearest package.json decides how Node reads .js files.
writeFileSync(`${folder}dist/cjs/package.json`, '{ "type": "commonjs" }\n');
execFileSync(process.execPath, [tsc, '-p', `${folder}tsconfig.cjs.json`], { stdio: 'inherit' });
