/** Entries of a block, which share a scale: their largest magnitude. */
export const momentsPerScale = 256;

/** Values in 8 bits: signed ones as Int8Array, with seven decades; unsigned ones as Uint8Array, with eight. */
export interface CodedValues<Codes extends Int8Array | Uint8Array = Int8Array | Uint8Array> {
  codes: Codes;
  scales: Float32Array;
}

export function zeroSigned(length: number): CodedValues<Int8Array> {
  return { codes: new Int8Array(length), scales: new Float32Array(scaleCount(length)) };
}

export function zeroUnsigned(length: number): CodedValues<Uint8Array> {
  return { codes: new Uint8Array(length), scales: new Float32Array(scaleCount(length)) };
}

export function scaleCount(length: number): number {
  return Math.ceil(length / momentsPerScale);
}

/**
 * Decodes values. The code is the dynamic one of 8-bit Adam (Dettmers et al. 2021): the decades below 1 are cut into 1, 2, 4, ... equal
 * cells, and a code stands for the middle of its cell, stretched so that the last middle is 1. 0 is exactly zero. The native kernel
 * (moment_codes.h) gives the reasons.
 */
export function decode({ codes, scales }: CodedValues): Float32Array {
  const middles = middlesOf(decadesOf(codes));
  const values = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i]!;
    values[i] = Math.sign(code) * middles[Math.abs(code)]! * scales[Math.floor(i / momentsPerScale)]!;
  }
  return values;
}

/** Writes the codes and new scales of values. An unsigned value that is not zero never becomes zero. */
export function encode({ codes, scales }: CodedValues, values: Float32Array): void {
  const decades = decadesOf(codes);
  const least = codes instanceof Uint8Array ? 1 : 0;
  for (let block = 0; block < scales.length; block++) {
    const [begin, end] = [block * momentsPerScale, Math.min(codes.length, (block + 1) * momentsPerScale)];
    let scale = 0;
    for (let i = begin; i < end; i++) scale = Math.max(scale, Math.abs(values[i]!));
    scales[block] = scale;
    for (let i = begin; i < end; i++) {
      const value = values[i]!;
      const cell = value === 0 ? 0 : Math.max(least, cellOf(Math.abs(value) / scale, decades));
      codes[i] = Math.sign(value) * cell;
    }
  }
}

function decadesOf(codes: Int8Array | Uint8Array): number {
  return codes instanceof Int8Array ? 7 : 8;
}

/** The last middle before stretching. */
function topOf(decades: number): number {
  return 1 - 0.45 / 2 ** (decades - 1);
}

/** Cells 2^d .. 2^(d + 1) - 1 are in decade d. */
function middlesOf(decades: number): Float64Array {
  const middles = new Float64Array(2 ** decades);
  for (let cell = 1; cell < middles.length; cell++) {
    const decade = Math.floor(Math.log2(cell));
    const middle = (0.9 * (cell + 0.5)) / 2 ** decade - 0.8;
    middles[cell] = (middle * 10 ** (decade - decades + 1)) / topOf(decades);
  }
  return middles;
}

function cellOf(share: number, decades: number): number {
  const magnitude = share * topOf(decades);
  let decade = decades - 1;
  let power = 1;
  for (; decade > 0 && magnitude < 0.1 * power; decade--) power /= 10;
  const cell = Math.floor(((magnitude / power - 0.1) / 0.9) * 2 ** decade + 2 ** decade);
  return Math.min(cell, 2 ** decades - 1);
}
