import { cpus } from 'node:os';

/** The platform of a binary, or of this process. */
export interface Platform {
  /** As `process.platform` names it. */
  os: string;
  /** As `process.arch` names it. */
  arch: string;
  /** On Linux; null elsewhere. */
  libc: 'glibc' | 'musl' | null;
}

/** The platform of this process. */
export interface ThisPlatform extends Platform {
  /** Version of glibc; null if it is not used. */
  glibc: string | null;
  /** Whether Apple's Rosetta translates this process from Intel's instructions. */
  isTranslated: boolean;
}

export function thisPlatform(): ThisPlatform {
  const { platform: os, arch } = process;
  const glibc = os === 'linux' ? glibcVersion() : null;
  const libc = os !== 'linux' ? null : glibc === null ? 'musl' : 'glibc';
  return { os, arch, libc, glibc, isTranslated: isTranslated(os, arch, cpus()[0]?.model ?? '') };
}

/** Node.js reports the version of its glibc; with musl it reports none. */
function glibcVersion(): string | null {
  const report = process.report as NodeJS.ProcessReport & { excludeNetwork: boolean };
  const { excludeNetwork } = report;
  report.excludeNetwork = true; // otherwise it does reverse DNS lookups
  const { header } = report.getReport() as { header: { glibcVersionRuntime?: string } };
  report.excludeNetwork = excludeNetwork;
  return header.glibcVersionRuntime ?? null;
}

/** Under Rosetta the processor is named `VirtualApple`; no Intel processor has Apple in its name. */
export function isTranslated(os: string, arch: string, cpuModel: string): boolean {
  return os === 'darwin' && arch === 'x64' && cpuModel.includes('Apple');
}

/** A name for people, such as `linux arm64 with musl`. */
export function platformText({ os, arch, libc }: Platform): string {
  return `${os} ${arch}${libc === null ? '' : ` with ${libc}`}`;
}

/** Platforms with published binaries, by the suffix of the package's name, which begins with `@relora/native-`. */
export const platformsWithBinaries: Readonly<Record<string, Platform>> = {
  'linux-x64': { os: 'linux', arch: 'x64', libc: 'glibc' },
  'linux-arm64': { os: 'linux', arch: 'arm64', libc: 'glibc' },
  'linux-x64-musl': { os: 'linux', arch: 'x64', libc: 'musl' },
  'linux-arm64-musl': { os: 'linux', arch: 'arm64', libc: 'musl' },
  'darwin-arm64': { os: 'darwin', arch: 'arm64', libc: null },
  'darwin-x64': { os: 'darwin', arch: 'x64', libc: null },
};

/** The package of binaries for a platform; undefined if none is published. */
export function packageFor({ os, arch, libc }: Platform): string | undefined {
  const found = Object.entries(platformsWithBinaries).find(
    ([, platform]) => platform.os === os && platform.arch === arch && platform.libc === libc,
  );
  return found && packageNamed(found[0]);
}

export const packageNamed = (name: string): string => `@relora/native-${name}`;
