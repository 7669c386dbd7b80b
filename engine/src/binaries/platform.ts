import { cpus } from 'node:os';

/** What a binary was made for, or what this process runs on. */
export interface Platform {
  /** As `process.platform` names it. */
  os: string;
  /** As `process.arch` names it. */
  arch: string;
  /** Of Linux; null elsewhere. */
  libc: 'glibc' | 'musl' | null;
}

/** What this process runs on. */
export interface ThisPlatform extends Platform {
  /** Version of glibc; null without it. */
  glibc: string | null;
  /** Whether Apple's Rosetta translates this process, which is for Intel's processors, for Apple's. */
  isTranslated: boolean;
}

export function thisPlatform(): ThisPlatform {
  const { platform: os, arch } = process;
  const glibc = os === 'linux' ? glibcVersion() : null;
  const libc = os !== 'linux' ? null : glibc === null ? 'musl' : 'glibc';
  return { os, arch, libc, glibc, isTranslated: isTranslated(os, arch, cpus()[0]?.model ?? '') };
}

/** Node.js knows the version of the glibc that it runs on; with musl it has none to report. */
function glibcVersion(): string | null {
  const report = process.report as NodeJS.ProcessReport & { excludeNetwork: boolean };
  const { excludeNetwork } = report;
  report.excludeNetwork = true; // else it looks up names of addresses
  const { header } = report.getReport() as { header: { glibcVersionRuntime?: string } };
  report.excludeNetwork = excludeNetwork;
  return header.glibcVersionRuntime ?? null;
}

/** Rosetta gives a processor the name `VirtualApple`; no processor of Intel's has Apple in its name. */
export function isTranslated(os: string, arch: string, cpuModel: string): boolean {
  return os === 'darwin' && arch === 'x64' && cpuModel.includes('Apple');
}

/** A name for people, such as `linux arm64 with musl`. */
export function platformText({ os, arch, libc }: Platform): string {
  return `${os} ${arch}${libc === null ? '' : ` with ${libc}`}`;
}

/** Platforms that binaries are published for, by the end of the package's name, which begins with `@relora/native-`. */
export const platformsWithBinaries: Readonly<Record<string, Platform>> = {
  'linux-x64': { os: 'linux', arch: 'x64', libc: 'glibc' },
  'linux-arm64': { os: 'linux', arch: 'arm64', libc: 'glibc' },
  'linux-x64-musl': { os: 'linux', arch: 'x64', libc: 'musl' },
  'linux-arm64-musl': { os: 'linux', arch: 'arm64', libc: 'musl' },
  'darwin-arm64': { os: 'darwin', arch: 'arm64', libc: null },
  'darwin-x64': { os: 'darwin', arch: 'x64', libc: null },
};

/** The package of binaries for a platform; undefined where none is published. */
export function packageFor({ os, arch, libc }: Platform): string | undefined {
  const found = Object.entries(platformsWithBinaries).find(
    ([, platform]) => platform.os === os && platform.arch === arch && platform.libc === libc,
  );
  return found && packageNamed(found[0]);
}

export const packageNamed = (name: string): string => `@relora/native-${name}`;
