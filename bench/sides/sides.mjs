// A side of a comparison, as plain data: { engine: 'relora' | 'pytorch', preset, rank (0: full-rank), batch, time, precision, compile
// (PyTorch only), microBatch, recompute and headPrecision (ours only), threads, layerCount, vocabSize }; omitted fields have defaults.

/** 8 sequences of 256 tokens: used in all comparisons of whole steps. */
export const batchShape = { batch: 8, time: 256 };

/** Unquantized precisions, among which "our fastest" is determined. */
export const oursModes = ['float32', 'bfloat16'].map((precision) => ({ precision }));

export const pytorchModes = [false, true].flatMap((compile) =>
  ['float32', 'bfloat16', 'autocast'].map((precision) => ({ precision, compile })),
);

export function nameOf({ engine }) {
  return engine === 'relora' ? 'ours' : 'PyTorch';
}

export function modeOf({ precision = 'fastest mode', compile, headPrecision }) {
  const head = headPrecision === undefined ? '' : `, head ${headPrecision}`;
  return `${precision}${compile ? ', compiled' : ''}${head}`;
}

export function kindOf({ rank, recompute = false, microBatch }) {
  const kind = rank === 0 ? 'full-rank' : `ReLoRA r=${rank}`;
  return `${kind}${recompute ? ', recomputed' : ''}${microBatch === undefined ? '' : `, ${microBatch} at a time`}`;
}

export function labelOf(side) {
  return `${side.preset} ${kindOf(side)}, ${nameOf(side)}, ${modeOf(side)}`;
}
