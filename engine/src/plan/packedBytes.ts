/** What a frozen base may be kept in. */
export const baseKinds = ['float32', 'bfloat16', 'int8', 'nf4', 'fp8'] as const;
export type BaseKind = (typeof baseKinds)[number];

/** What products read; weights in nf4 are unpacked to the precision of the products first. */
export type PackedKind = Exclude<BaseKind, 'nf4' | 'fp8'>;

/** Layout of packed right operands (native/gemm/kernel_interface.h), in words of 4 bytes. */
interface Layout {
  columnQuantum: number;
  stepQuantum: number;
  /** Elements in a word, one below the other. */
  perStep: number;
  /** Rows of a block, each of which has `headers` words of scales in front of every column. */
  block: number;
  headers: number;
}

/** Weights in nf4 that share a scale. */
const nf4Block = 64;

const lanesOf: Readonly<Record<string, number>> = { avx2: 8, portable: 4 };

function layoutOf(instructionSet: string, kind: PackedKind): Layout {
  const columnQuantum = lanesOf[instructionSet] ?? 16;
  const stepQuantum = instructionSet === 'amx' && kind !== 'float32' ? 16 : 1;
  const plain = { columnQuantum, stepQuantum, block: 256, headers: 0 };
  if (kind === 'float32') return { ...plain, perStep: 1 };
  if (kind === 'bfloat16') return { ...plain, perStep: 2 };
  // Twice and four times the words for the left operand make blocks as much shorter.
  const block = instructionSet === 'portable' ? 256 : instructionSet === 'avx2' ? 512 : 1024;
  return { ...plain, perStep: 4, block, headers: 2 };
}

/** Bytes of a right operand [rows, columns] as products read it. */
export function packedBytes(rows: number, columns: number, instructionSet: string, kind: PackedKind): number {
  const { columnQuantum, stepQuantum, perStep, block, headers } = layoutOf(instructionSet, kind);
  const up = (value: number, quantum: number): number => Math.ceil(value / quantum) * quantum;
  const steps = up(Math.ceil(rows / perStep), stepQuantum) + Math.ceil(rows / block) * headers;
  return 4 * up(columns, columnQuantum) * steps;
}

/** Bytes of a frozen weight: packed for both directions, x W and dy Wᵀ, or in nf4 once. */
export function packedBaseBytes(
  { inFeatures, outFeatures }: { inFeatures: number; outFeatures: number },
  instructionSet: string,
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
