import type { Card } from './cudaAddon.js';
import type { KernelCompiler, KernelTarget } from './kernelCompiler.js';
import { readKernelFile, type KernelEntry, type KernelFile } from './kernelText.js';
import { encodeLaunch, type ParameterValues } from './launchList.js';

export interface KernelCall {
  /** The file and the kernel in it; `definitions` select a variant of the file. */
  readonly file: string;
  readonly kernel: string;
  readonly definitions?: readonly string[];
  readonly grid: readonly [x: number, y?: number, z?: number];
  /** Dynamic shared memory: the most that any launch of this kernel needs, and what this one needs. */
  readonly dynamicSharedBytes?: number;
  readonly parameters: ParameterValues;
}

interface LoadedKernel {
  readonly number: number;
  readonly entry: KernelEntry;
}

/** The kernels of an open card: compiled and loaded on first use; calls are counted. */
export class Kernels {
  readonly counts = new Map<string, number>();
  private readonly loaded = new Map<string, LoadedKernel>();
  private readonly modules = new Map<string, { file: KernelFile; number: number }>();

  constructor(
    private readonly card: Card,
    private readonly compiler: KernelCompiler,
    private readonly target: KernelTarget,
    private readonly read: (file: string) => KernelFile = readKernelFile,
  ) {}

  launch(call: KernelCall): void {
    if (call.grid.some((size) => size === 0)) return; // nothing to do
    const { number, entry } = this.load(call);
    this.card.run(encodeLaunch({ ...call, kernel: number, entry }));
    this.counted(call.kernel);
  }

  counted(name: string, count = 1): void {
    this.counts.set(name, (this.counts.get(name) ?? 0) + count);
  }

  private load({ file, kernel, definitions = [], dynamicSharedBytes = 0 }: KernelCall): LoadedKernel {
    const moduleKey = [file, ...definitions].join(' ');
    const key = `${moduleKey} ${kernel} ${dynamicSharedBytes}`;
    const known = this.loaded.get(key);
    if (known !== undefined) return known;
    const module = this.modules.get(moduleKey) ?? this.loadModule(moduleKey, file, definitions);
    const entry = module.file.kernels.find(({ name }) => name === kernel);
    if (entry === undefined) throw new Error(`${file}.cu has no kernel ${kernel}`);
    const loaded = { number: this.card.loadKernel(module.number, kernel, dynamicSharedBytes), entry };
    this.loaded.set(key, loaded);
    return loaded;
  }

  private loadModule(key: string, name: string, definitions: readonly string[]) {
    const file = this.read(name);
    const target = { ...this.target, definitions };
    const module = { file, number: this.card.loadModule(this.compiler.compile(file, target).image) };
    this.modules.set(key, module);
    return module;
  }
}
