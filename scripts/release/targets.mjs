// What binaries are made for, and what they may ask of a system.
import { platformsWithBinaries } from '@relora/engine/binaries';

/** Older and newer ones make other files, so that digests would not agree. */
export const zigVersion = '0.17.1';
/** Debian 10, RHEL 8, Ubuntu 18.10 and newer have it; Node.js itself needs it from version 18 on. */
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

/** Libraries that the system has; all else is in the files themselves. */
const systemLibraries = {
  glibc: /^(libc\.so\.6|libm\.so\.6|libpthread\.so\.0|libdl\.so\.2|librt\.so\.1|ld-linux-.*)$/,
  musl: /^libc\.so$/,
  darwin: /^\/usr\/lib\/libSystem\.B\.dylib$/,
};

/** Bytes that a package may have, packed: an addition that costs users more than this is to be meant. */
export const packedBytesMax = 2_500_000;

export const targets = Object.entries(platformsWithBinaries).map(([name, platform]) => ({
  name,
  platform,
  triple: triples[name],
  files: platform.os === 'linux' ? ['relora.node', 'relora_cuda.node', 'confine'] : ['relora.node'],
  libraries: systemLibraries[platform.libc ?? platform.os],
}));
