/** Formats in which a frozen base may be stored. */
export const baseKinds = ['float32', 'bfloat16', 'int8', 'nf4', 'fp8'] as const;
export type BaseKind = (typeof baseKinds)[number];

/** Formats that products read; nf4 weights are unpacked to the precision of the products first. */
export type PackedKind = Exclude<BaseKind, 'nf4' | 'fp8'>;

/** Layout of packed right operands (native/gemm/kernel_interface.h), in 4-byte words. */
interface Layout {
  columnQuantum: number;
  stepQuantum: number;
  /** Elements of one column that share a word. */
  perStep: number;
  /** Rows of a block; each block has `headers` words of scales per column. */
  block: number;
  headers: number;
}

/** Number of nf4 weights that share a scale. */
const nf4Block = 64;

/** Per instruction set: columns per vector, the multiple that bfloat16 and int8 steps are rounded up to, rows of an int8 block. */
const packings: Readonly<Record<string, [lanes: number, steps: number, int8Block: number]>> = {
  amx: [16, 16, 1024],
  avx512bf16: [16, 1, 1024],
  avx512: [16, 1, 1024],
  avx2: [8, 1, 512],
  neonBf16: [4, 2, 1024],
  neonDot: [4, 1, 1024],
  neon: [4, 1, 256],
  portable: [4, 1, 256],
};

/** Without an instruction set nothing is packed: only the weights themselves count. */
const unpacked: (typeof packings)[string] = [1, 1, 1024];

function layoutOf(instructionSet: string | null, kind: PackedKind): Layout {
  const packing = instructionSet === null ? unpacked : packings[instructionSet.replace(/-model$/, '')];
  if (packing === undefined)
    throw new Error(`The layout of packed weights for ${instructionSet} is not known`);
  const [columnQuantum, steps, block] = packing;
  const stepQuantum = kind === 'float32' ? 1 : steps;
  const plain = { columnQuantum, stepQuantum, block: 256, headers: 0 };
  if (kind === 'float32') return { ...plain, perStep: 1 };
  if (kind === 'bfloat16') return { ...plain, perStep: 2 };
  // Left operands with two or four times as many words make blocks shorter by that factor.
  return { ...plain, perStep: 4, block, headers: 2 };
}

/** Bytes of a right operand [rows, columns] in the form that products read. */
export function packedBytes(
  rows: number,
  columns: number,
  instructionSet: string | null,
  kind: PackedKind,
): number {
  const { columnQuantum, stepQuantum, perStep, block, headers } = layoutOf(instructionSet, kind);
  const up = (value: number, quantum: number): number => Math.ceil(value / quantum) * quantum;
  const steps = up(Math.ceil(rows / perStep), stepQuantum) + Math.ceil(rows / block) * headers;
  return 4 * up(columns, columnQuantum) * steps;
}

/** Bytes of a frozen weight: packed for both directions, x W and dy Wᵀ, or stored once as nf4. */
export function packedBaseBytes(
  { inFeatures, outFeatures }: { inFeatures: number; outFeatures: number },
  instructionSet: string | null,
  kind: BaseKind,
): number {
  const weights = inFeatures * outFeatures;
  if (kind === 'nf4') return Math.ceil(weights / 2) + 4 * Math.ceil(weights / nf4Block);
  if (kind === 'fp8') return 2 * weights + 4 * (inFeatures + outFeatures);
  return (
    packedBytes(inFeatures, outFeatures, instructionSet, kind) +
    packedBytes(outFeatures, inFeatures, instructionSet, kind)
  );
}
