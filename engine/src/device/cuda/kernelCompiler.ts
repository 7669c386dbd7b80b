import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { CudaAddon } from './cudaAddon.js';
import { readKernelHeaders, type KernelFile } from './kernelText.js';

/** What a file of kernels is compiled for. */
export interface KernelTarget {
  /** As `sm_90a`. */
  readonly architecture: string;
  /** `NAME=VALUE` of the preprocessor, which make several modules of one text. */
  readonly definitions?: readonly string[];
  /** Of a compiler that has more than NVRTC has: the model's. */
  readonly moreOptions?: readonly string[];
}

/** A fault of ours: every kernel is compiled for every architecture before it is released. */
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
  /** From the cache where there is one and it has it. */
  compile(file: KernelFile, target: KernelTarget): { image: Uint8Array; log: string };
}

/**
 * Compiles by NVRTC. The key of the cache is everything that makes the image: texts, options and the compiler's version. Whoever may
 * not write the folder reads it alone, and compiles what it does not find there.
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

/** `-v` puts registers and spills into the log; nothing else of it changes the image. */
function compilerOptions({ architecture, definitions = [], moreOptions = [] }: KernelTarget): string[] {
  return [
    `--gpu-architecture=${architecture}`,
    '--std=c++17',
    '--ptxas-options=-v',
    ...definitions.map((definition) => `-D${definition}`),
    ...moreOptions,
  ];
}

/** An image with its digest before it, so that a file that was cut off is compiled again and never loaded. */
function readImage(path: string): Uint8Array | null {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch {
    return null; // not there, or not for us to read: it is compiled instead
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
