// Packs the packages for publishing: those with binaries, and those of the workspaces.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmodSync, copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { packageNamed, platformText } from '@relora/engine/binaries';
import { glibcMax, macosMin, targets, zigVersion } from './targets.mjs';

const root = fileURLToPath(new URL('../../', import.meta.url));
const engine = JSON.parse(readFileSync(join(root, 'engine/package.json'), 'utf8'));

/** SHA-256 of a file in hexadecimal digits. */
export const digestOf = (path) => createHash('sha256').update(readFileSync(path)).digest('hex');

/** Packs a target's binaries, given by name, into `folder`; returns the path of the archive. */
export function packBinaries({ name, platform }, binaries, { folder, stage }) {
  const at = join(stage, name);
  rmSync(at, { recursive: true, force: true });
  mkdirSync(at, { recursive: true });
  const files = {};
  for (const [file, path] of Object.entries(binaries)) {
    const bytes = readFileSync(path);
    files[file] = { sizeBytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
    copyFileSync(path, join(at, file));
    chmodSync(join(at, file), file === 'confine' ? 0o755 : 0o644);
  }
  const { os, arch, libc } = platform;
  const manifest = {
    name: packageNamed(name),
    version: engine.version,
    description: `Native code of the ReLoRA training server for ${platformText(platform)}`,
    license: engine.license,
    engines: engine.engines,
    os: [os],
    cpu: [arch],
    ...(libc !== null && { libc: [libc] }),
    files: Object.keys(files),
    // For the loader, which checks the files against it.
    relora: {
      files,
      zig: zigVersion,
      ...(libc === 'glibc' && { glibc: glibcMax }),
      ...(os === 'darwin' && { macos: macosMin }),
    },
  };
  writeFileSync(join(at, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
  writeFileSync(join(at, 'README.md'), readme(manifest));
  copyFileSync(join(root, 'LICENSE'), join(at, 'LICENSE'));
  execFileSync('chmod', ['-R', 'u=rwX,go=rX', at]);
  return npmPack(at, folder);
}

const readme = ({ name, description }) =>
  `# ${name}\n\n${description}, which \`@relora/engine\` installs by itself where it fits. It is compiled from the sources in that package;\n` +
  "LLVM's C++ library (Apache-2.0 with LLVM exceptions) is linked into it.\n";

/**
 * Packs a workspace. The engine's dependencies on the packages of binaries are added here, since these are made after the checkout's lock
 * file.
 */
export function packWorkspace(workspace, { folder, stage }) {
  const at = join(stage, workspace);
  rmSync(at, { recursive: true, force: true });
  mkdirSync(at, { recursive: true });
  const plain = npmPack(join(root, workspace), stage);
  execFileSync('tar', ['xzf', plain, '--strip-components=1', '-C', at]);
  rmSync(plain);
  if (workspace === 'engine') {
    const optionalDependencies = Object.fromEntries(
      targets.map(({ name }) => [packageNamed(name), engine.version]),
    );
    writeFileSync(
      join(at, 'package.json'),
      `${JSON.stringify({ ...engine, optionalDependencies }, null, 2)}\n`,
    );
  }
  // Under a different umask a checkout has different modes, which npm packs.
  execFileSync('chmod', ['-R', 'u=rwX,go=rX', at]);
  return npmPack(at, folder);
}

/** npm gives all files in an archive the same time and owner, so that the same files give the same archive. */
function npmPack(from, folder) {
  mkdirSync(folder, { recursive: true });
  const args = ['pack', '--ignore-scripts', '--loglevel=error', '--pack-destination', folder];
  const npm = process.env.npm_execpath ? [process.execPath, process.env.npm_execpath] : ['npm'];
  return join(
    folder,
    execFileSync(npm[0], [...npm.slice(1), ...args], { cwd: from, encoding: 'utf8' }).trim(),
  );
}
