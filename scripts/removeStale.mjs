// Removes compiled files of deleted sources. TypeScript leaves them, and they would still be imported, tested and packed.
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const { workspaces } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));

for (const name of workspaces) {
  const output = join(root, name, 'dist');
  if (!existsSync(output)) continue;
  for (const file of readdirSync(output, { recursive: true })) {
    const [, path] = /^(?!cjs\/)(.+?)\.(?:js|js\.map|d\.ts)$/.exec(file.replaceAll('\\', '/')) ?? [];
    if (path !== undefined && !existsSync(join(root, name, 'src', `${path}.ts`))) rmSync(join(output, file));
  }
}
