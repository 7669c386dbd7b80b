/** What the compiler reports about one kernel. */
export interface KernelResources {
  readonly kernel: string;
  readonly registers: number;
  /** Bytes of static shared memory. */
  readonly sharedBytes: number;
  /** Bytes of registers spilled to memory: stores and loads. */
  readonly spilledBytes: number;
  readonly stackBytes: number;
}

/** Reads the log of `--ptxas-options=-v`, which has a paragraph per kernel. */
export function readCompilerLog(log: string): { kernels: KernelResources[]; warnings: string[] } {
  const kernels: KernelResources[] = [];
  for (const part of log.split(/(?=Compiling entry function ')/)) {
    const kernel = /^Compiling entry function '(\w+)'/.exec(part)?.[1];
    if (kernel === undefined) continue;
    const number = (pattern: RegExp) => Number(pattern.exec(part)?.[1] ?? 0);
    kernels.push({
      kernel,
      registers: number(/Used (\d+) registers/),
      sharedBytes: number(/(\d+) bytes smem/),
      spilledBytes: number(/(\d+) bytes spill stores/) + number(/(\d+) bytes spill loads/),
      stackBytes: number(/(\d+) bytes stack frame/),
    });
  }
  return { kernels, warnings: log.split('\n').filter((line) => /warning/i.test(line)) };
}
