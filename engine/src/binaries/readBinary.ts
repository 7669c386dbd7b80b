import type { Platform } from './platform.js';

/** Requirements of a program or library, from its headers. */
export interface Binary extends Platform {
  /** Libraries that it is linked to. */
  libraries: string[];
  /** Symbol versions that it needs from these libraries, such as `GLIBC_2.28`. */
  versions: string[];
  /** Oldest macOS; null elsewhere. */
  macosMin: string | null;
}

/** Reads the headers of an ELF or Mach-O file, or of the beginning of a PE file; null for anything else and for truncated files. */
export function readBinary(bytes: Buffer): Binary | null {
  try {
    const magic = bytes.readUInt32LE(0);
    if (magic === 0x464c457f) return readElf(bytes);
    if (magic === 0xfeedfacf) return readMachO(bytes);
    if (bytes.toString('latin1', 0, 2) === 'MZ')
      return { os: 'win32', arch: '', libc: null, libraries: [], versions: [], macosMin: null };
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return null;
}

const elfMachines: Readonly<Record<number, string>> = {
  3: 'ia32',
  21: 'ppc64',
  22: 's390x',
  40: 'arm',
  62: 'x64',
  183: 'arm64',
  243: 'riscv64',
  258: 'loong64',
};
// From the ELF specification: kinds of segments, and entries of the dynamic section.
const [PT_LOAD, PT_DYNAMIC, PT_INTERP] = [1, 2, 3];
const [DT_NULL, DT_NEEDED, DT_STRTAB, DT_VERNEED, DT_VERNEEDNUM] = [0, 1, 5, 0x6ffffffe, 0x6fffffff];

function readElf(bytes: Buffer): Binary {
  const machine = bytes.readUInt16LE(18);
  const arch = elfMachines[machine] ?? `machine ${machine}`;
  const [isWide, isLittle] = [bytes[4] === 2, bytes[5] === 1];
  const base = { os: 'linux', arch, macosMin: null };
  // No binaries are published for such processors, so the platform is all that matters.
  if (!isWide || !isLittle) return { ...base, libc: null, libraries: [], versions: [] };
  const segments = Array.from({ length: bytes.readUInt16LE(56) }, (_, index) => {
    const at = number(bytes, 32) + index * bytes.readUInt16LE(54);
    const [offset, address, size] = [8, 16, 32].map((field) => number(bytes, at + field)) as [
      number,
      number,
      number,
    ];
    return { kind: bytes.readUInt32LE(at), offset, address, size };
  });
  const offsetOf = (address: number): number => {
    const segment = segments.find(
      (each) => each.kind === PT_LOAD && address >= each.address && address < each.address + each.size,
    );
    if (segment === undefined) throw new RangeError(`no segment has the address ${address}`);
    return segment.offset + address - segment.address;
  };

  const entries: { tag: number; value: number }[] = [];
  const dynamic = segments.find(({ kind }) => kind === PT_DYNAMIC);
  for (let at = dynamic?.offset ?? bytes.length; at < bytes.length; at += 16) {
    const tag = number(bytes, at);
    if (tag === DT_NULL) break;
    entries.push({ tag, value: number(bytes, at + 8) });
  }
  const valueOf = (tag: number): number | undefined => entries.find((entry) => entry.tag === tag)?.value;
  const strings = valueOf(DT_STRTAB);
  const text = (offset: number): string =>
    strings === undefined ? '' : textAt(bytes, offsetOf(strings) + offset);
  const libraries = entries.filter(({ tag }) => tag === DT_NEEDED).map(({ value }) => text(value));

  const versions: string[] = [];
  const needs = valueOf(DT_VERNEED);
  let need = needs === undefined ? 0 : offsetOf(needs);
  for (let left = valueOf(DT_VERNEEDNUM) ?? 0; left > 0 && needs !== undefined; left--) {
    let version = need + bytes.readUInt32LE(need + 8);
    for (let of = bytes.readUInt16LE(need + 2); of > 0; of--) {
      versions.push(text(bytes.readUInt32LE(version + 8)));
      version += bytes.readUInt32LE(version + 12);
    }
    need += bytes.readUInt32LE(need + 12);
  }
  const interpreter = segments.find(({ kind }) => kind === PT_INTERP);
  const loader = interpreter === undefined ? '' : textAt(bytes, interpreter.offset);
  return { ...base, libc: libcOf([...libraries, loader]), libraries, versions };
}

/** musl is a single library with several names; Zig links it as `libc.so`. */
function libcOf(names: readonly string[]): Platform['libc'] {
  if (names.some((name) => /^libc\.so\.6$|\/ld-linux/.test(name))) return 'glibc';
  return names.some((name) => /^libc\.(musl-.*)?so|\/ld-musl/.test(name)) ? 'musl' : null;
}

const machOProcessors: Readonly<Record<number, string>> = { 0x01000007: 'x64', 0x0100000c: 'arm64' };
// Load commands of Mach-O.
const [LC_LOAD_DYLIB, LC_BUILD_VERSION] = [0xc, 0x32];

function readMachO(bytes: Buffer): Binary {
  const processor = bytes.readUInt32LE(4);
  const libraries: string[] = [];
  let macosMin: string | null = null;
  let at = 32;
  for (let left = bytes.readUInt32LE(16); left > 0; left--) {
    const command = bytes.readUInt32LE(at);
    if (command === LC_LOAD_DYLIB) libraries.push(textAt(bytes, at + bytes.readUInt32LE(at + 8)));
    if (command === LC_BUILD_VERSION) {
      const version = bytes.readUInt32LE(at + 12);
      macosMin = `${version >>> 16}.${(version >>> 8) & 0xff}`;
    }
    at += bytes.readUInt32LE(at + 4);
  }
  const arch = machOProcessors[processor] ?? `processor ${processor}`;
  return { os: 'darwin', arch, libc: null, libraries, versions: [], macosMin };
}

/** Sizes and offsets: in an undamaged file they are below 2^53. */
const number = (bytes: Buffer, at: number): number => Number(bytes.readBigUInt64LE(at));

function textAt(bytes: Buffer, at: number): string {
  const end = bytes.indexOf(0, at);
  if (at < 0 || at >= bytes.length || end < 0) throw new RangeError(`no text at ${at}`);
  return bytes.toString('latin1', at, end);
}

/** The newest glibc version among the needed symbols; null if none is needed. */
export function glibcNeeded({ versions }: Pick<Binary, 'versions'>): string | null {
  const found = versions.flatMap((version) => /^GLIBC_(\d+(?:\.\d+)+)$/.exec(version)?.[1] ?? []);
  return found.sort(compareVersions).at(-1) ?? null;
}

/** Negative if the first is older; 2.9 is older than 2.28. */
export function compareVersions(one: string, other: string): number {
  const [first, second] = [one, other].map((version) => version.split('.').map(Number));
  for (let index = 0; index < Math.max(first!.length, second!.length); index++) {
    const difference = (first![index] ?? 0) - (second![index] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}
