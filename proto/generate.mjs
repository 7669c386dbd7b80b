// Generates the SDK's types, the server's descriptor set and the schema of run files from proto/. With --check it fails if the committed
// ones differ, or if the contract breaks compatibility with the last release, proto/released.binpb.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
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
// In addition to the contract: the messages for the details of an error.
const errorDetails = ['status', 'error_details'].map(
  (name) => `node_modules/google-proto-files/google/rpc/${name}.proto`,
);
const sources = ['proto/relora', ...errorDetails].flatMap((path) => ['--path', path]);
buf('generate', '.', ...sources);
// These only annotate the contract: 8,600 lines that no program uses.
for (const unused of ['api', 'protobuf/descriptor.ts']) {
  rmSync(join(root, 'sdk/src/generated/google', unused), { recursive: true });
}
shareBytes();
buf('build', '.', ...sources, '-o', 'server/src/generated/relora.binpb');
const schema = join(root, 'cli/job.schema.json');
const schemaBefore = readFileSync(schema, 'latin1');
// The schema also contains the limits and defaults in the engine's table of settings.
if (existsSync(join(root, 'engine/dist/plan/index.js')))
  execFileSync(process.execPath, [join(root, 'scripts/makeJobSchema.mjs')], { stdio: 'inherit' });
else console.warn('cli/job.schema.json needs the built engine: npm run build, then this again.');

if (check) {
  const changed = outputs.flatMap((folder) => differences(join(before, folder), join(root, folder)));
  if (schemaBefore !== readFileSync(schema, 'latin1')) changed.push('job.schema.json');
  rmSync(before, { recursive: true });
  if (changed.length > 0) {
    console.error(`Generated code was not current and has been regenerated: ${changed.join(', ')}`);
    process.exit(1);
  }
  console.log('Generated code is current.');
}

/** Lets the bytes of a field share the memory of the received message; ts-proto would copy them. */
function shareBytes() {
  const folder = join(root, 'sdk/src/generated');
  const copied = /(message\.\w+) = Buffer\.from\(reader\.bytes\(\)\);/g;
  const shared = (field) =>
    `const bytes = reader.bytes();\n            ${field} = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);`;
  let count = 0;
  for (const name of readdirSync(folder, { recursive: true })) {
    if (!name.endsWith('.ts')) continue;
    const source = readFileSync(join(folder, name), 'utf8');
    writeFileSync(
      join(folder, name),
      source.replaceAll(copied, (_, field) => {
        count++;
        return shared(field);
      }),
    );
  }
  if (count === 0) throw new Error('ts-proto no longer reads bytes as it did: see shareBytes');
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
