/** What the compiler says of one kernel. */
export interface KernelResources {
  readonly kernel: string;
  readonly registers: number;
  /** Static shared memory. */
  readonly sharedBytes: number;
  /** Registers that went to memory: stores and loads. */
  readonly spilledBytes: number;
  readonly stackBytes: number;
}

/** Reads the log of `--ptxas-options=-v`: a paragraph for each kernel. */
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
