import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { cudaFolder } from './cudaAddon.js';

/** A field of a kernel's parameter struct. */
export interface ParameterField {
  readonly name: string;
  readonly kind: 'pointer' | 'int' | 'u32' | 'float';
  readonly offset: number;
}

export interface ParameterLayout {
  readonly name: string;
  readonly fields: readonly ParameterField[];
  readonly bytes: number;
}

export interface KernelEntry {
  readonly name: string;
  readonly threads: number;
  readonly parameters: ParameterLayout;
}

/** One .cu file: its module, and its kernels with their parameters. */
export interface KernelFile {
  /** For example `rms_norm`. */
  readonly name: string;
  readonly source: string;
  readonly kernels: readonly KernelEntry[];
}

const kernelFolder = join(cudaFolder, 'kernels');

/** Headers that kernels include, by name. */
export function readKernelHeaders(folder = kernelFolder): { names: string[]; texts: string[] } {
  const names = readdirSync(folder)
    .filter((file) => file.endsWith('.h'))
    .sort();
  return { names, texts: names.map((name) => readFileSync(join(folder, name), 'utf8')) };
}

export function listKernelFiles(folder = kernelFolder): string[] {
  return readdirSync(folder)
    .filter((file) => file.endsWith('.cu'))
    .map((file) => file.slice(0, -'.cu'.length))
    .sort();
}

export function readKernelFile(name: string, folder = kernelFolder): KernelFile {
  return parseKernelText(name, readFileSync(join(folder, `${name}.cu`), 'utf8'));
}

/**
 * The parameters of kernels are described only in their source: as a struct with one plain field per line, which this parses. Assertions
 * appended to the source check the layout computed here against the compiler's.
 */
export function parseKernelText(name: string, source: string): KernelFile {
  const layouts = new Map<string, ParameterLayout>();
  for (const [, structure, body] of source.matchAll(/^struct (\w+) \{\n([^}]*)\n\};/gm)) {
    if (structure!.endsWith('Parameters')) layouts.set(structure!, layoutOf(name, structure!, body!));
  }
  const kernels = [...source.matchAll(/^KERNEL\((\w+), (\w+), (\d+)\)/gm)].map(
    ([, kernel, structure, threads]) => {
      const parameters = layouts.get(structure!);
      if (parameters === undefined)
        throw new Error(`${name}.cu: ${kernel} takes ${structure}, which is not there`);
      return { name: kernel!, threads: Number(threads), parameters };
    },
  );
  const assertions = [...layouts.values()].map(
    (layout) =>
      `static_assert(sizeof(${layout.name}) == ${layout.bytes}, "the layout that the host computes");\n`,
  );
  return { name, source: `${source}\n${assertions.join('')}`, kernels };
}

function layoutOf(file: string, name: string, body: string): ParameterLayout {
  const fields: ParameterField[] = [];
  let offset = 0;
  for (const line of body.split('\n')) {
    const code = line.replace(/\/\/.*$/, '').trim();
    if (code === '') continue;
    const match = /^(const )?(\w+)(\*| \*)? ?(\w+);$/.exec(code);
    const kind = match === null ? undefined : match[3] !== undefined ? 'pointer' : match[2];
    if (kind !== 'pointer' && kind !== 'int' && kind !== 'u32' && kind !== 'float')
      throw new Error(
        `${file}.cu: expected a pointer, int, u32 or float a line in ${name}, got ${line.trim()}`,
      );
    const bytes = kind === 'pointer' ? 8 : 4;
    offset = Math.ceil(offset / bytes) * bytes;
    fields.push({ name: match![4]!, kind, offset });
    offset += bytes;
  }
  const alignment = fields.some(({ kind }) => kind === 'pointer') ? 8 : 4;
  return { name, fields, bytes: Math.ceil(offset / alignment) * alignment };
}
