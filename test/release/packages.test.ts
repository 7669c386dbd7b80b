import { execFileSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, join, posix } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { platformsWithBinaries } from '@relora/engine/binaries';
import { problemsOf } from '../../scripts/release/checkBinary.mjs';
import { digestOf, packBinaries, packWorkspace } from '../../scripts/release/pack.mjs';
import { writeSbom } from '../../scripts/release/sbom.mjs';
import { targets } from '../../scripts/release/targets.mjs';
import { temporaryFolder } from '../e2e/tinyJob.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const workspaces = ['engine', 'sdk', 'page', 'server', 'cli'];
const list = (archive: string) =>
  execFileSync('tar', ['tzf', archive], { encoding: 'utf8' })
    .trim()
    .split('\n')
    .map((path) => path.replace(/^package\//, ''))
    .sort();
const read = (archive: string, path: string) =>
  execFileSync('tar', ['xzOf', archive, `package/${path}`], { encoding: 'utf8', maxBuffer: 1 << 28 });

/** Contents of a package besides its package.json, which npm always adds: committed files, and what the build makes from its sources. */
const beside: Record<string, RegExp> = {
  engine: /^(native\/|cuda\/(?!model\/)|compileLibrary\.mjs$|systemName\.mjs$)/,
  sdk: /^$/,
  page: /^public\//,
  server: /^(bin|native)\//,
  cli: /^(bin\/|job\.schema\.json$)/,
};

function expectedFiles(workspace: string): string[] {
  // Includes uncommitted files, but no ignored ones, which builds leave.
  const flags = ['ls-files', '--cached', '--others', '--exclude-standard'];
  const committed = execFileSync('git', flags, { cwd: join(root, workspace), encoding: 'utf8' })
    .trim()
    .split('\n');
  const sources = committed.filter((path) => path.startsWith('src/'));
  const outputs = workspace === 'sdk' ? ['dist', 'dist/cjs'] : ['dist'];
  const built = sources
    .filter((path) => path.endsWith('.ts') && !path.endsWith('.d.ts'))
    .flatMap((path) => {
      const name = path.slice('src/'.length, -'.ts'.length);
      return outputs.flatMap((output) =>
        ['js', 'js.map', 'd.ts'].map((end) => posix.join(output, `${name}.${end}`)),
      );
    });
  return [
    ...['LICENSE', 'README.md', 'package.json', ...sources, ...built],
    ...committed.filter((path) => beside[workspace]!.test(path)),
    ...(workspace === 'sdk' ? ['dist/cjs/package.json'] : []),
  ].sort();
}

describe('packages', () => {
  it.each(workspaces)('%s holds what it should, and nothing else', (workspace) => {
    const folder = temporaryFolder();
    const archive = packWorkspace(workspace, { folder, stage: folder });
    expect(list(archive)).toEqual(expectedFiles(workspace));
    expect(list(archive).filter((path) => /\.(node|o|tsbuildinfo)$|\/build\//.test(path))).toEqual([]);
  });

  it('only the packed engine names the packages of binaries, each of its own version', () => {
    const folder = temporaryFolder();
    const packed = JSON.parse(
      read(packWorkspace('engine', { folder, stage: folder }), 'package.json'),
    ) as object;
    const source = JSON.parse(readFileSync(join(root, 'engine/package.json'), 'utf8')) as { version: string };
    const names = Object.keys(platformsWithBinaries).map((name) => [
      `@relora/native-${name}`,
      source.version,
    ]);
    expect(packed).toEqual({ ...source, optionalDependencies: Object.fromEntries(names) as object });
    expect(source).not.toHaveProperty('optionalDependencies');
  });

  it('of binaries hold them, their digests and what npm chooses by', () => {
    const folder = temporaryFolder();
    const file = join(folder, 'file');
    writeFileSync(file, 'binary');
    for (const target of targets) {
      const binaries = Object.fromEntries(target.files.map((name) => [name, file]));
      const archive = packBinaries(target, binaries, { folder, stage: folder });
      expect(list(archive)).toEqual(['LICENSE', 'README.md', 'package.json', ...target.files].sort());
      const { os, arch, libc } = target.platform;
      const manifest = JSON.parse(read(archive, 'package.json')) as Record<string, unknown>;
      expect(manifest).toMatchObject({ os: [os], cpu: [arch], ...(libc !== null && { libc: [libc] }) });
      expect(manifest).not.toHaveProperty('scripts');
      const stated = (manifest.relora as { files: Record<string, { sha256: string }> }).files;
      for (const name of target.files) expect(stated[name]!.sha256).toBe(digestOf(file));
    }
  });

  it('are the same bytes whenever and wherever they are packed', () => {
    const [one, other] = [temporaryFolder(), temporaryFolder()];
    const target = targets[0]!;
    const binaries = (at: string) => {
      copyFileSync(join(root, 'LICENSE'), join(at, 'file'));
      return Object.fromEntries(target.files.map((name) => [name, join(at, 'file')]));
    };
    const made = [one, other].map((at) => {
      const folders = { folder: at, stage: join(at, 'stage') };
      mkdirSync(folders.stage);
      const archives = [
        packBinaries(target, binaries(at), folders),
        packWorkspace('engine', folders),
        writeSbom(at),
      ];
      return archives.map(digestOf);
    });
    expect(made[0]).toEqual(made[1]);
  });

  it('are the same bytes from a checkout under another umask', () => {
    const checkout = temporaryFolder();
    const stage = join(checkout, 'stage');
    for (const part of ['cli', 'scripts/release', 'engine/package.json', 'LICENSE'])
      cpSync(join(root, part), join(checkout, part), { recursive: true });
    symlinkSync(join(root, 'node_modules'), join(checkout, 'node_modules'));
    execFileSync('chmod', ['-R', 'go-rwx', join(checkout, 'cli')]);
    const module = pathToFileURL(join(checkout, 'scripts/release/pack.mjs')).href;
    const script = `import { packWorkspace } from ${JSON.stringify(module)};
      process.umask(0o077);
      packWorkspace('cli', ${JSON.stringify({ folder: checkout, stage })});`;
    mkdirSync(stage);
    execFileSync(process.execPath, ['--input-type=module', '--eval', script]);
    const folder = temporaryFolder();
    const here = packWorkspace('cli', { folder, stage: folder });
    expect(digestOf(join(checkout, basename(here)))).toBe(digestOf(here));
  });

  it('have a list of all that they are made of, and of nothing that development alone needs', () => {
    const { packages } = JSON.parse(readFileSync(writeSbom(temporaryFolder()), 'utf8')) as {
      packages: { name: string; versionInfo: string }[];
    };
    const names = new Set(packages.map(({ name }) => name));
    const { devDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
      devDependencies: Record<string, string>;
    };
    const needed = workspaces.flatMap((workspace) => {
      const { dependencies = {}, optionalDependencies = {} } = JSON.parse(
        readFileSync(join(root, workspace, 'package.json'), 'utf8'),
      ) as Record<string, Record<string, string>>;
      return Object.keys({ ...dependencies, ...optionalDependencies });
    });
    expect(needed.filter((name) => !names.has(name))).toEqual([]);
    const forDevelopment = Object.keys(devDependencies).filter((name) => !needed.includes(name));
    expect(
      forDevelopment.filter(
        (name) => /^(eslint|vitest|typescript|puppeteer-core)$/.test(name) && names.has(name),
      ),
    ).toEqual([]);
    expect([...names]).toEqual(expect.arrayContaining(['libc++', '@relora/server']));
  });
});

describe('what a release checks of its binaries', () => {
  const tokenizers = join(root, 'node_modules/tokenizers');
  const target = (name: string) => targets.find((each) => each.name === name)!;

  it('finds a file for another system, and what not every system has', () => {
    const problems = (file: string, name: string) =>
      problemsOf(join(tokenizers, file), target(name)).join('\n');
    expect(problems('tokenizers.linux-arm64-gnu.node', 'linux-x64')).toMatch(
      /it is for linux arm64 with glibc, expected linux x64 with glibc/,
    );
    expect(problems('tokenizers.linux-x64-gnu.node', 'linux-x64-musl')).toMatch(
      /expected linux x64 with musl/,
    );
    expect(problems('tokenizers.linux-x64-gnu.node', 'linux-x64')).toMatch(/it needs libgcc_s.so.1/);
    expect(problems('tokenizers.win32-x64-msvc.node', 'darwin-x64')).toMatch(/it is for win32/);
    expect(problems('package.json', 'darwin-x64')).toMatch(/is no library or program/);
  });

  // The locally compiled one is linked to this machine's C++ library, which other machines may lack.
  it.skipIf(process.platform !== 'linux' || process.arch !== 'x64')(
    'finds a C++ library of the system',
    () => {
      const built = join(root, 'engine/native/build/relora.node');
      expect(problemsOf(built, target('linux-x64')).join('\n')).toMatch(/it needs libstdc\+\+\.so\.6/);
    },
  );
});
