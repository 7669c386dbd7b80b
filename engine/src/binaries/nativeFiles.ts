import { createHash } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { engineVersion } from '../engineVersion.js';
import {
  packageFor,
  packageNamed,
  platformsWithBinaries,
  platformText,
  thisPlatform,
  type ThisPlatform,
} from './platform.js';
import { compareVersions, glibcNeeded, readBinary } from './readBinary.js';

/** Files of native code: the engine for CPUs, the one for cards, and the program that sandboxes child processes. */
export type NativeFileName = 'relora.node' | 'relora_cuda.node' | 'confine';

export interface NativeFile {
  path: string;
  /** Where the file comes from, for people. */
  origin: string;
}

/** Native code that is missing, damaged, or made for another platform; the message ends with a colon and what to do. */
export class NativeUnusable extends Error {
  override name = 'NativeUnusable';
  readonly reason = 'NATIVE_UNUSABLE';
}

export interface NativeSearch {
  /** RELORA_NATIVE: `auto`, `build`, `prebuilt`, or the path of a folder with the files. */
  choice?: string;
  /** Path of the locally compiled file, whether it exists or not. */
  built: string;
  platform?: ThisPlatform;
  /** A file from which packages are resolved; default: this one. */
  from?: string;
}

/** The value of `RELORA_NATIVE`; `auto` takes locally compiled code, else the package of binaries for this platform. */
export const nativeChoice = (): string => process.env.RELORA_NATIVE || 'auto';

/** Finds a file of native code, or throws NativeUnusable. Files of a package are checked against the package's description. */
export function findNativeFile(
  name: NativeFileName,
  { choice = nativeChoice(), built, platform, from = import.meta.url }: NativeSearch,
): NativeFile {
  if ((platform?.os ?? process.platform) === 'win32')
    throw new NativeUnusable('The engine does not run on Windows: use WSL2 or Docker');
  if (choice === 'build' || (choice === 'auto' && existsSync(built))) {
    if (existsSync(built)) return { path: built, origin: `compiled here (${built})` };
    throw new NativeUnusable(`RELORA_NATIVE is build, but ${built} is not there: ${compiling}`);
  }
  if (choice === 'auto' || choice === 'prebuilt') {
    const here = platform ?? thisPlatform();
    if (here.isTranslated && choice === 'auto')
      throw new NativeUnusable(
        'This Node.js is for Intel and translated by Rosetta, where training is slow: install Node.js for arm64 and the packages ' +
          'again, or set RELORA_NATIVE=prebuilt to run as it is',
      );
    return findPrebuilt(name, here, from);
  }
  const path = join(choice, name);
  if (!existsSync(path))
    throw new NativeUnusable(
      `RELORA_NATIVE is ${choice}, where there is no ${name}: name auto, build, prebuilt or a folder that has it`,
    );
  return { path, origin: `from ${choice}, which RELORA_NATIVE names` };
}

const compiling =
  'compile it, by `npm run build` in a checkout or `npx relora-server build` elsewhere (g++ >= 11 or clang >= 14 is needed)';

/** A package lists length and SHA-256 of each file. */
interface PackageOfBinaries {
  version: string;
  relora: { files: Record<string, { sizeBytes: number; sha256: string }> };
}

function findPrebuilt(name: NativeFileName, platform: ThisPlatform, from: string): NativeFile {
  const here = platformText(platform);
  const wanted = packageFor(platform);
  if (wanted === undefined) throw new NativeUnusable(`No binaries are published for ${here}: ${compiling}`);
  const manifest = resolveFile(`${wanted}/package.json`, from);
  const again = `npm install ${wanted}@${engineVersion}`;
  if (manifest === undefined) {
    const others = Object.keys(platformsWithBinaries)
      .map(packageNamed)
      .filter((other) => resolveFile(`${other}/package.json`, from) !== undefined);
    const why =
      others.length === 0
        ? `${wanted} is not installed`
        : `only those of ${others.join(', ')} are installed, as on another system`;
    throw new NativeUnusable(`There is no ${name} for ${here}, ${why}: run \`${again}\`, or ${compiling}`);
  }
  const { version, relora } = JSON.parse(readFileSync(manifest, 'utf8')) as PackageOfBinaries;
  if (version !== engineVersion)
    throw new NativeUnusable(
      `${wanted} has version ${version}, the engine ${engineVersion}: run \`${again}\``,
    );
  const path = join(dirname(manifest), name);
  const stated = relora.files[name];
  if (stated === undefined) throw new NativeUnusable(`${wanted} has no ${name}: ${compiling}`);
  const bytes = existsSync(path) ? readFileSync(path) : undefined;
  const sha256 = bytes && createHash('sha256').update(bytes).digest('hex');
  if (sha256 !== stated.sha256)
    throw new NativeUnusable(
      `${path} is damaged (${bytes?.length ?? 0} bytes of ${stated.sizeBytes}, SHA-256 ${sha256 ?? 'of nothing'} in place of ` +
        `${stated.sha256}): remove ${dirname(manifest)} and run \`${again}\``,
    );
  return { path, origin: `${wanted} ${version} (${path})` };
}

function resolveFile(specifier: string, from: string): string | undefined {
  try {
    return createRequire(from).resolve(specifier);
  } catch {
    return undefined;
  }
}

/** The addon for processors, as RELORA_NATIVE or `choice` says. Throws NativeUnusable. */
export const findNativeAddon = (choice = nativeChoice()): NativeFile =>
  findNativeFile('relora.node', { choice, built: engineFile('native/build/relora.node') });

/** Loads an addon; throws NativeUnusable with the reason if that fails. */
export function loadNativeFile(file: NativeFile): unknown {
  try {
    return createRequire(import.meta.url)(file.path);
  } catch (error) {
    const reason = (error as Error).message.split('\n')[0]!.replaceAll(': ', ', ');
    throw new NativeUnusable(
      whyUnfit(file, thisPlatform()) ?? `${file.path} cannot be loaded (${reason}): ${curing(file)}`,
      { cause: error },
    );
  }
}

/** The reason, from its headers, why the file cannot be used here; null if the headers show none. */
export function whyUnfit(file: NativeFile, platform: ThisPlatform): string | null {
  const { path } = file;
  const binary = readBinary(readFileSync(path));
  if (binary === null) return `${path} is no library, or cut short: ${curing(file)}`;
  const isForeign =
    binary.os !== platform.os ||
    binary.arch !== platform.arch ||
    (binary.libc !== null && binary.libc !== platform.libc);
  if (isForeign)
    return `${path} is for ${platformText(binary)}, this is ${platformText(platform)}: ${curing(file)}`;
  const needed = glibcNeeded(binary);
  if (needed === null || platform.glibc === null || compareVersions(needed, platform.glibc) <= 0) return null;
  return (
    `${path} needs glibc ${needed}, this system has ${platform.glibc}: use a newer system or a container (deploy/Dockerfile), ` +
    `or ${compiling}`
  );
}

const curing = ({ origin }: NativeFile): string =>
  origin.startsWith('@relora/') ? 'install the packages again on this system' : compiling;

/** Path of a file in the engine's package; sources and build have the same depth. */
export const engineFile = (path: string): string => fileURLToPath(new URL(`../../${path}`, import.meta.url));
