// Generates the SDK's types and the server's descriptor set from proto/. With --check it fails when the committed ones
// differ or when the contract breaks the last release, proto/released.binpb.
import { execFileSync } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const outputs = ['sdk/src/generated', 'server/src/generated'];
const check = process.argv.includes('--check');

const before = mkdtempSync(join(tmpdir(), 'relora-proto-'));
if (check)
  for (const folder of outputs) cpSync(join(root, folder), join(before, folder), { recursive: true });

const buf = (...args) =>
  execFileSync(process.execPath, [join(root, 'node_modules/@bufbuild/buf/bin/buf'), ...args], {
    cwd: root,
    stdio: 'inherit',
  });
buf('lint', 'proto');
if (check) buf('breaking', 'proto', '--against', 'proto/released.binpb');
// Beside the contract, what the details of an error are written in.
const errorDetails = ['status', 'error_details'].map(
  (name) => `node_modules/google-proto-files/google/rpc/${name}.proto`,
);
const sources = ['proto/relora', ...errorDetails].flatMap((path) => ['--path', path]);
buf('generate', '.', ...sources);
// What only annotates the contract: 8,600 lines that no program reads.
for (const unused of ['api', 'protobuf/descriptor.ts']) {
  rmSync(join(root, 'sdk/src/generated/google', unused), { recursive: true });
}
buf('build', '.', ...sources, '-o', 'server/src/generated/relora.binpb');

if (check) {
  const changed = outputs.flatMap((folder) => differences(join(before, folder), join(root, folder)));
  rmSync(before, { recursive: true });
  if (changed.length > 0) {
    console.error(`Generated code was not current and has been regenerated: ${changed.join(', ')}`);
    process.exit(1);
  }
  console.log('Generated code is current.');
}

function differences(oldFolder, newFolder) {
  const files = (folder) =>
    readdirSync(folder, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name).slice(folder.length + 1));
  const names = new Set([...files(oldFolder), ...files(newFolder)]);
  const read = (folder, name) => {
    try {
      return readFileSync(join(folder, name), 'latin1');
    } catch {
      return undefined;
    }
  };
  return [...names].filter((name) => read(oldFolder, name) !== read(newFolder, name));
}
