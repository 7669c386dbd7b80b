// Targets of binaries, and what they may require of a system.
import { platformsWithBinaries } from '@relora/engine/binaries';

/** Other versions produce different files, so that digests would not match. */
export const zigVersion = '0.17.1';
/** Available on Debian 10, RHEL 8, Ubuntu 18.10 and newer; Node.js itself needs it from version 18 on. */
export const glibcMax = '2.28';
export const macosMin = '13.0';

const triples = {
  'linux-x64': `x86_64-linux-gnu.${glibcMax}`,
  'linux-arm64': `aarch64-linux-gnu.${glibcMax}`,
  'linux-x64-musl': 'x86_64-linux-musl',
  'linux-arm64-musl': 'aarch64-linux-musl',
  'darwin-arm64': `aarch64-macos.${macosMin}`,
  'darwin-x64': `x86_64-macos.${macosMin}`,
};

/** Libraries that the system provides; everything else is linked in. */
const systemLibraries = {
  glibc: /^(libc\.so\.6|libm\.so\.6|libpthread\.so\.0|libdl\.so\.2|librt\.so\.1|ld-linux-.*)$/,
  musl: /^libc\.so$/,
  darwin: /^\/usr\/lib\/libSystem\.B\.dylib$/,
};

/** Limit for a package's packed size in bytes: exceeding it costs users, and must be a deliberate change. */
export const packedBytesMax = 2_500_000;

export const targets = Object.entries(platformsWithBinaries).map(([name, platform]) => ({
  name,
  platform,
  triple: triples[name],
  files: platform.os === 'linux' ? ['relora.node', 'relora_cuda.node', 'confine'] : ['relora.node'],
  libraries: systemLibraries[platform.libc ?? platform.os],
}));
