// `npm run test:cases FOLDER`: files that once caused errors, from a folder laid out as test/fixtures/cases and with its weights, on a real
// server; test/cases.test.ts has the required outcome of each. Then exports of large vocabularies, which gguf-large/mk_big.py creates.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const [folder, ...rest] = process.argv.slice(2);
if (folder === undefined || rest.length > 0 || !existsSync(folder)) {
  console.error(`Expected one folder that is there, got ${folder ?? 'none'}`);
  process.exit(2);
}
const root = fileURLToPath(new URL('..', import.meta.url));
const { status } = spawnSync(
  process.execPath,
  [
    'node_modules/vitest/vitest.mjs',
    'run',
    'test/cases.test.ts',
    'test/engine/export.large.test.ts',
    '--reporter=verbose',
  ],
  { cwd: root, stdio: 'inherit', env: { ...process.env, TEST_CASES: resolve(folder) } },
);
process.exit(status ?? 1);
