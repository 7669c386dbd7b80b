import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { CudaAddon } from './cudaAddon.js';
import { readKernelHeaders, type KernelFile } from './kernelText.js';

/** Compilation target of a kernel file. */
export interface KernelTarget {
  /** For example `sm_90a`. */
  readonly architecture: string;
  /** Preprocessor definitions `NAME=VALUE`, which make several modules from one source. */
  readonly definitions?: readonly string[];
  /** Options of a compiler that supports more than NVRTC does: that of the card model. */
  readonly moreOptions?: readonly string[];
}

/** An error of ours: every kernel is compiled for every architecture before a release. */
export class KernelsDoNotCompile extends Error {
  constructor(
    file: string,
    readonly log: string,
  ) {
    super(`The kernels of ${file}.cu do not compile:\n${log}`);
  }
}

export interface KernelCompiler {
  /** The compiler's version, as in a job's record. */
  readonly version: string;
  /** Taken from the cache if it is there. */
  compile(file: KernelFile, target: KernelTarget): { image: Uint8Array; log: string };
}

/**
 * Compiles with NVRTC. The key of the cache is everything that determines the image: sources, options and the compiler's version. If the
 * folder is not writable, it is only read, and images that are not there are compiled.
 */
export function kernelCompiler(
  addon: CudaAddon,
  library: string,
  cache: { readonly folder: string; readonly isWritable: boolean } | null,
): KernelCompiler {
  const { major, minor } = addon.openCompiler(library);
  const version = `${major}.${minor}`;
  const headers = readKernelHeaders();
  return {
    version,
    compile(file, target) {
      const options = compilerOptions(target);
      const key = createHash('sha256')
        .update(JSON.stringify([version, file.name, file.source, headers, options]))
        .digest('hex');
      const path = cache === null ? null : join(cache.folder, `${file.name}.${key.slice(0, 32)}.bin`);
      const kept = path === null ? null : readImage(path);
      if (kept !== null) return { image: kept, log: '' };
      const { image, log } = addon.compile({
        name: `${file.name}.cu`,
        source: file.source,
        headerNames: headers.names,
        headers: headers.texts,
        options,
      });
      if (image === null) throw new KernelsDoNotCompile(file.name, log);
      if (path !== null && cache!.isWritable) writeImage(cache!.folder, path, image);
      return { image, log };
    },
  };
}

/** `-v` puts registers and spills into the log; it does not change the image. */
function compilerOptions({ architecture, definitions = [], moreOptions = [] }: KernelTarget): string[] {
  return [
    `--gpu-architecture=${architecture}`,
    '--std=c++17',
    '--ptxas-options=-v',
    ...definitions.map((definition) => `-D${definition}`),
    ...moreOptions,
  ];
}

/** An image preceded by its digest, so that a truncated file is compiled again and never loaded. */
function readImage(path: string): Uint8Array | null {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch {
    return null; // missing or not readable: it is compiled instead
  }
  const image = bytes.subarray(32);
  return Buffer.compare(digestOf(image), bytes.subarray(0, 32)) === 0 ? image : null;
}

function writeImage(folder: string, path: string, image: Uint8Array): void {
  mkdirSync(folder, { recursive: true });
  const temporary = `${path}.${process.pid}`;
  writeFileSync(temporary, Buffer.concat([digestOf(image), image]));
  renameSync(temporary, path);
}

const digestOf = (image: Uint8Array) => createHash('sha256').update(image).digest();
