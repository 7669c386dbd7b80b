import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import {
  compareVersions,
  findNativeFile,
  glibcNeeded,
  isTranslated,
  loadNativeFile,
  packageFor,
  platformsWithBinaries,
  readBinary,
  thisPlatform,
  whyUnfit,
  type ThisPlatform,
} from '@relora/engine/binaries';
import { temporaryFolder } from '../e2e/tinyJob.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const built = join(root, 'engine/native/build/relora.node');
const tokenizers = join(root, 'node_modules/tokenizers');
const here = thisPlatform();
const { version } = JSON.parse(readFileSync(join(root, 'engine/package.json'), 'utf8')) as {
  version: string;
};

describe('headers of libraries', () => {
  // A package with a library for every system.
  const libraries = readdirSync(tokenizers).filter((name) => name.endsWith('.node'));
  it.each(libraries.filter((name) => !/android|universal|eabihf/.test(name)))(
    'say what %s is for',
    (name) => {
      const [, os, arch, libc] = /^tokenizers\.(\w+?)-(\w+)(?:-(\w+))?\.node$/.exec(name)!;
      const binary = readBinary(readFileSync(join(tokenizers, name)));
      expect(binary).toMatchObject({
        os,
        ...(os !== 'win32' && { arch }),
        libc: os === 'linux' ? (libc === 'gnu' ? 'glibc' : 'musl') : null,
      });
    },
  );

  it('say which libraries, and which versions of their symbols, are needed', () => {
    const binary = readBinary(readFileSync(built))!;
    expect(binary).toMatchObject({ os: here.os, arch: here.arch, libc: here.libc });
    if (here.libc !== 'glibc') return;
    expect(binary.libraries).toContain('libc.so.6');
    expect(compareVersions(glibcNeeded(binary)!, here.glibc!)).toBeLessThanOrEqual(0);
  });

  it('of a macOS library name its oldest system', () => {
    const binary = readBinary(readFileSync(join(tokenizers, 'tokenizers.darwin-arm64.node')))!;
    expect(binary.macosMin).toMatch(/^1\d\.\d+$/);
    expect(binary.libraries.join()).toContain('libSystem');
  });

  it('are not to be had of what is cut short, or of something else', () => {
    const bytes = readFileSync(built);
    for (const length of [0, 3, 60, 200]) expect(readBinary(bytes.subarray(0, length))).toBeNull();
    expect(readBinary(Buffer.from('#!/bin/sh\nexit 0\n'))).toBeNull();
  });

  it('compare versions as numbers', () => {
    expect(['2.28', '2.9', '2.4', '2.28.1'].sort(compareVersions)).toEqual(['2.4', '2.9', '2.28', '2.28.1']);
    expect(glibcNeeded({ versions: ['GLIBC_2.9', 'GLIBC_2.28', 'GLIBC_PRIVATE', 'GCC_12.0'] })).toBe('2.28');
  });
});

/**
 * Creates a folder with packages of binaries, given by the suffixes of their names, in its `node_modules`; returns a file from which they
 * are found.
 */
function installed(
  names: string[],
  change: (at: string) => void = () => {},
  { version: installedVersion = version } = {},
): string {
  const folder = temporaryFolder();
  for (const name of names) {
    const at = join(folder, 'node_modules/@relora', `native-${name}`);
    mkdirSync(at, { recursive: true });
    copyFileSync(built, join(at, 'relora.node'));
    const bytes = readFileSync(built);
    const stated = { sizeBytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
    const manifest = { version: installedVersion, relora: { files: { 'relora.node': stated } } };
    writeFileSync(join(at, 'package.json'), JSON.stringify(manifest));
    change(at);
  }
  return join(folder, 'entry.js');
}

const ownName = Object.entries(platformsWithBinaries).find(
  ([, { os, arch, libc }]) => os === here.os && arch === here.arch && libc === here.libc,
)?.[0];
const linux: ThisPlatform = { os: 'linux', arch: 'x64', libc: 'glibc', glibc: '2.36', isTranslated: false };
const mac: ThisPlatform = { os: 'darwin', arch: 'x64', libc: null, glibc: null, isTranslated: false };
const nothing = '/nowhere/relora.node';
const find = (search: Partial<Parameters<typeof findNativeFile>[1]>) =>
  findNativeFile('relora.node', { choice: 'auto', built: nothing, platform: linux, ...search });

describe('which file of native code is taken', () => {
  it('by default what was compiled here, else the package of binaries', () => {
    const from = installed(['linux-x64']);
    expect(find({ built, from }).path).toBe(built);
    expect(find({ from })).toEqual({
      path: join(from, '../node_modules/@relora/native-linux-x64/relora.node'),
      origin: expect.stringMatching(/^@relora\/native-linux-x64 \d/) as string,
    });
  });

  it('RELORA_NATIVE takes either of them, or a folder', () => {
    const from = installed(['linux-x64', 'linux-x64-musl']);
    const folder = join(from, '../node_modules/@relora/native-linux-x64-musl');
    expect(find({ built, from, choice: 'prebuilt' }).path).toContain('native-linux-x64/');
    expect(find({ built, from, choice: 'build' }).path).toBe(built);
    expect(find({ built, from, choice: folder })).toEqual({
      path: join(folder, 'relora.node'),
      origin: `from ${folder}, which RELORA_NATIVE names`,
    });
  });

  it('each platform has its package', () => {
    for (const [name, platform] of Object.entries(platformsWithBinaries)) {
      const from = installed(Object.keys(platformsWithBinaries));
      const found = find({ from, platform: { ...linux, ...platform, glibc: null } });
      expect(found.path).toContain(`/native-${name}/`);
      expect(packageFor(platform)).toBe(`@relora/native-${name}`);
    }
  });

  // Each message ends with what to do, after its last colon.
  it.each<[string, () => unknown, RegExp]>([
    [
      'no package',
      () => find({ from: installed([]) }),
      /There is no relora.node for linux x64 with glibc, @relora\/native-linux-x64 is not installed: run `npm install @relora\/native-linux-x64@\d\S+`, or compile it, by `npm run build`.*`npx relora-server build`/,
    ],
    [
      'packages of another system, as in a folder that two share',
      () => find({ from: installed(['darwin-arm64']) }),
      /only those of @relora\/native-darwin-arm64 are installed, as on another system: run `npm install/,
    ],
    [
      'a package of another version than the engine',
      () => find({ from: installed(['linux-x64'], () => {}, { version: '0.0.9' }) }),
      new RegExp(`has version 0\\.0\\.9, the engine ${version.replaceAll('.', '\\.')}: run \`npm install`),
    ],
    [
      'a damaged package',
      () =>
        find({
          from: installed(['linux-x64'], (at) => {
            const bytes = readFileSync(join(at, 'relora.node'));
            bytes[bytes.length >> 1]! ^= 1;
            writeFileSync(join(at, 'relora.node'), bytes);
          }),
        }),
      /relora.node is damaged \(\d+ bytes of \d+, SHA-256 [0-9a-f]{64} in place of [0-9a-f]{64}\): remove \S+ and run `npm install/,
    ],
    [
      'a package that was cut short',
      () => find({ from: installed(['linux-x64'], (at) => writeFileSync(join(at, 'relora.node'), '')) }),
      /is damaged \(0 bytes of \d+/,
    ],
    [
      'a processor that nothing is published for',
      () => find({ platform: { ...linux, arch: 's390x' } }),
      /No binaries are published for linux s390x with glibc: compile it/,
    ],
    [
      'Rosetta',
      () => find({ platform: { ...mac, isTranslated: true }, from: installed(['darwin-x64']) }),
      /translated by Rosetta, where training is slow: install Node.js for arm64 and the packages again, or set RELORA_NATIVE=prebuilt/,
    ],
    [
      'Windows',
      () => find({ platform: { ...mac, os: 'win32' } }),
      /^The engine does not run on Windows: use WSL2 or Docker$/,
    ],
    [
      'a build that is asked for and not there',
      () => find({ choice: 'build' }),
      /RELORA_NATIVE is build, but \/nowhere\/relora.node is not there: compile it/,
    ],
    [
      'a folder without the file',
      () => find({ choice: '/nowhere' }),
      /RELORA_NATIVE is \/nowhere, where there is no relora.node: name auto, build, prebuilt or a folder/,
    ],
  ])('%s: an error that says what to do', (_, attempt, message) => {
    expect(attempt).toThrow(
      expect.objectContaining({
        reason: 'NATIVE_UNUSABLE',
        message: expect.stringMatching(message) as string,
      }),
    );
  });

  it('under Rosetta the package for Intel is used where that is asked for', () => {
    const platform = { ...mac, isTranslated: true };
    const found = find({ platform, choice: 'prebuilt', from: installed(['darwin-x64']) });
    expect(found.path).toContain('native-darwin-x64');
    expect(isTranslated('darwin', 'x64', 'VirtualApple @ 2.50GHz')).toBe(true);
    expect(isTranslated('darwin', 'x64', 'Intel(R) Core(TM) i7-9750H')).toBe(false);
    expect(isTranslated('darwin', 'arm64', 'Apple M2')).toBe(false);
  });
});

describe('a file that cannot be loaded', () => {
  const load = (path: string, origin = `from ${path}`) => {
    let message = 'nothing was thrown';
    try {
      loadNativeFile({ path, origin });
    } catch (error) {
      ({ message } = error as Error);
    }
    return message;
  };

  it.skipIf(ownName === undefined).each(
    Object.keys(platformsWithBinaries)
      .filter((name) => name !== ownName)
      .map((name) => ({ name, file: /^linux-\w+$/.test(name) ? `${name}-gnu` : name })),
  )('is named when it is for $name', ({ name, file }) => {
    const { os, arch, libc } = platformsWithBinaries[name]!;
    const path = join(tokenizers, `tokenizers.${file}.node`);
    const what = `${os} ${arch}${libc === null ? '' : ` with ${libc}`}`;
    // Symbols that musl lacks are noticed only at the first call, so glibc's loader may accept the file.
    if (name === `${ownName}-musl`)
      expect(whyUnfit({ path, origin: '' }, here)).toContain(`is for ${what}, this is`);
    else
      expect(load(path)).toMatch(new RegExp(`is for ${what}, this is ${here.os} ${here.arch}.*: compile it`));
    expect(whyUnfit({ path, origin: '@relora/native' }, here)).toMatch(
      /: install the packages again on this/,
    );
  });

  it('is no library', () => {
    const path = join(temporaryFolder(), 'relora.node');
    writeFileSync(path, 'text');
    expect(load(path)).toMatch(/relora.node is no library, or cut short: compile it/);
  });

  it.skipIf(here.libc !== 'glibc')('needs a newer glibc than there is', () => {
    // Replaces the newest version that the addon needs by one that no glibc has, as after a build on a newer system.
    const path = join(temporaryFolder(), 'relora.node');
    const bytes = readFileSync(built);
    const binary = readBinary(bytes)!;
    const old = `GLIBC_${glibcNeeded(binary)!}`;
    const later = `GLIBC_9.${'9'.repeat(old.length - 8)}`;
    for (const [from, to] of [
      [Buffer.from(`${old}\0`, 'latin1'), Buffer.from(`${later}\0`, 'latin1')],
      [hashOf(old), hashOf(later)],
    ] as const)
      for (let at = bytes.indexOf(from); at >= 0; at = bytes.indexOf(from, at + 1)) to.copy(bytes, at);
    writeFileSync(path, bytes);
    expect(glibcNeeded(readBinary(bytes)!)).toBe(later.slice(6));
    expect(load(path)).toBe(
      `${path} needs glibc ${later.slice(6)}, this system has ${here.glibc}: use a newer system or a container ` +
        '(deploy/Dockerfile), or compile it, by `npm run build` in a checkout or `npx relora-server build` elsewhere ' +
        '(g++ >= 11 or clang >= 14 is needed)',
    );
  });
});

describe('the stamp of what was installed and built', () => {
  const nameWhere = (change: string) => {
    const script = `const { systemName } = await import(${JSON.stringify(join(root, 'engine/systemName.mjs'))}); ${change}; console.log(systemName());`;
    return spawnSync(process.execPath, ['--input-type=module', '-e', script], {
      encoding: 'utf8',
    }).stdout.trim();
  };

  it('names system, processor and libc, so that a folder that two systems share is made again for each', () => {
    const set = (name: string, value: string) =>
      `Object.defineProperty(process, '${name}', { value: '${value}' })`;
    const linux = `${set('platform', 'linux')}; ${set('arch', 'arm64')}`;
    const report = (header: object) =>
      `process.report.getReport = () => ({ header: ${JSON.stringify(header)} })`;
    expect(nameWhere(`${linux}; ${report({ glibcVersionRuntime: '2.36' })}`)).toBe('linux-arm64');
    expect(nameWhere(`${linux}; ${report({})}`)).toBe('linux-arm64-musl');
    expect(nameWhere(`${set('platform', 'darwin')}; ${set('arch', 'x64')}`)).toBe('darwin-x64');
    expect(nameWhere('')).toBe(ownName ?? `${here.os}-${here.arch}`);
  });
});

/** The hash of a version name in an ELF file: the loader compares hashes before names. */
function hashOf(name: string): Buffer {
  let hash = 0;
  for (const character of Buffer.from(name, 'latin1')) {
    hash = ((hash << 4) + character) >>> 0;
    const high = hash & 0xf0000000;
    hash = (hash ^ (high >>> 24) ^ high) >>> 0;
  }
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(hash);
  return bytes;
}
