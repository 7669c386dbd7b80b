// Content of the packages in SPDX format: our code, its dependencies, and what is linked into the binaries.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { zigVersion } from './targets.mjs';

const root = fileURLToPath(new URL('../../', import.meta.url));

/** Writes sbom.spdx.json into the folder and returns its path. The same commit and lock file give the same bytes. */
export function writeSbom(folder) {
  const npm = process.env.npm_execpath ? [process.execPath, process.env.npm_execpath] : ['npm'];
  const args = [...npm.slice(1), 'sbom', '--sbom-format=spdx', '--package-lock-only'];
  const text = execFileSync(npm[0], args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 });
  const { packages, relationships, ...document } = JSON.parse(text);
  const published = publishedPackages();
  const kept = packages.filter(({ name, versionInfo }) => published.has(`${name}@${versionInfo}`));
  const ids = new Set(kept.map(({ SPDXID }) => SPDXID));
  const engineId = kept.find(({ name }) => name === '@relora/engine').SPDXID;
  const byId = (one, other) => (JSON.stringify(one) < JSON.stringify(other) ? -1 : 1);
  const whole = {
    ...document,
    documentDescribes: kept.filter(({ name }) => name.startsWith('@relora/')).map(({ SPDXID }) => SPDXID),
    packages: [...kept, ...linkedParts()].sort(byId),
    relationships: [
      ...relationships.filter(
        ({ spdxElementId, relatedSpdxElement }) => ids.has(spdxElementId) && ids.has(relatedSpdxElement),
      ),
      ...linkedParts().map(({ SPDXID }) => ({
        ...{ spdxElementId: engineId, relatedSpdxElement: SPDXID, relationshipType: 'STATIC_LINK' },
      })),
    ].sort(byId),
  };
  // Time and place of creation do not belong to the content.
  const sum = createHash('sha256').update(JSON.stringify([whole.packages, whole.relationships]));
  whole.creationInfo.created = commitTime();
  whole.documentNamespace = `https://spdx.org/spdxdocs/relora-${sum.digest('hex')}`;
  const path = join(folder, 'sbom.spdx.json');
  writeFileSync(path, `${JSON.stringify(whole, null, 2)}\n`);
  return path;
}

/** From the lock file, as name@version: npm's own option (`--omit=dev`) also drops packages that development needs too. */
function publishedPackages() {
  const { packages } = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8'));
  return new Set(
    Object.entries(packages)
      .filter(([path, { dev, link }]) => path !== '' && !dev && !link)
      .map(([path, { name, version }]) => `${name ?? path.split('node_modules/').at(-1)}@${version}`),
  );
}

/** The parts of Zig that are linked into binaries. musl and glibc belong to the system. */
const linkedParts = () =>
  ['libc++', 'libc++abi', 'libunwind', 'compiler-rt'].map((name) => ({
    name,
    SPDXID: `SPDXRef-Linked-${name.replaceAll('+', 'x')}`,
    versionInfo: `of Zig ${zigVersion}`,
    downloadLocation: 'NOASSERTION',
    filesAnalyzed: false,
    licenseDeclared: name === 'compiler-rt' ? 'MIT' : 'Apache-2.0 WITH LLVM-exception',
  }));

/** Time of the commit, as in everything that is built from it. */
function commitTime() {
  const seconds =
    process.env.SOURCE_DATE_EPOCH ??
    execFileSync('git', ['log', '-1', '--format=%ct'], { cwd: root, encoding: 'utf8' }).trim();
  return new Date(Number(seconds) * 1000).toISOString().replace(/\.\d+Z$/, 'Z');
}
