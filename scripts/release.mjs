// Creates everything that a release publishes, in a folder: archives of the packages, their digests, and the list of their contents (SBOM).
// Publishes nothing. The same commit gives the same bytes on every machine: docs/release.md says how to check that.
//   npm run release [-- --out FOLDER] [--only NAME,NAME] [--binaries]
// By default all targets, into `release`. `--binaries` leaves out the packages without native code.
import { mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fail } from '../engine/compileLibrary.mjs';
import { problemsOf } from './release/checkBinary.mjs';
import { compileTarget, findZig } from './release/compile.mjs';
import { digestOf, packBinaries, packWorkspace } from './release/pack.mjs';
import { writeSbom } from './release/sbom.mjs';
import { packedBytesMax, targets } from './release/targets.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const { values } = parseArgs({
  options: {
    out: { type: 'string', default: join(root, 'release') },
    only: { type: 'string', default: targets.map(({ name }) => name).join(',') },
    binaries: { type: 'boolean', default: false },
  },
});
const names = values.only.split(',').filter((name) => name !== '');
const unknown = names.filter((name) => !targets.some((target) => target.name === name));
if (unknown.length > 0)
  fail(`Expected names out of ${targets.map(({ name }) => name).join(', ')}, got ${unknown.join(', ')}`);

const zig = names.length > 0 ? findZig() : undefined;

const out = resolve(values.out);
const [folder, stage] = [join(out, 'packages'), join(out, 'stage')];
rmSync(folder, { recursive: true, force: true });
mkdirSync(stage, { recursive: true });

const archives = [];
for (const target of targets.filter(({ name }) => names.includes(name))) {
  const binaries = await compileTarget(target, { folder: join(out, 'build'), zig });
  const problems = Object.values(binaries).flatMap((path) => problemsOf(path, target));
  if (problems.length > 0) fail(problems.join('\n'));
  const archive = packBinaries(target, binaries, { folder, stage });
  const { size } = statSync(archive);
  if (size > packedBytesMax)
    fail(`${archive} has ${size} bytes, more than the ${packedBytesMax} of scripts/release/targets.mjs`);
  archives.push(archive);
}
if (!values.binaries)
  for (const workspace of ['sdk', 'page', 'cli', 'engine', 'server'])
    archives.push(packWorkspace(workspace, { folder, stage }));
if (!values.binaries) archives.push(writeSbom(folder));

const sums = archives.map((path) => ({
  name: basename(path),
  sha256: digestOf(path),
  size: statSync(path).size,
}));
writeFileSync(join(folder, 'SHA256SUMS'), sums.map(({ name, sha256 }) => `${sha256}  ${name}\n`).join(''));
for (const { name, sha256, size } of sums) console.log(`${sha256}  ${String(size).padStart(8)}  ${name}`);
console.log(`Made ${sums.length} files in ${folder}`);
