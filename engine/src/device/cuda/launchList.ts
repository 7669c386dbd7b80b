import type { KernelEntry } from './kernelText.js';

/** Pointers are addresses on the card, other fields plain numbers. */
export type ParameterValues = Readonly<Record<string, number>>;

export interface Launch {
  /** The kernel's number in the addon. */
  readonly kernel: number;
  readonly entry: KernelEntry;
  readonly grid: readonly [x: number, y?: number, z?: number];
  readonly dynamicSharedBytes?: number;
  readonly parameters: ParameterValues;
}

const headerBytes = 32;

/** One launch in the format of the addon's `run`: kernel, grid, threads, shared memory, length of the parameters, parameters. */
export function encodeLaunch({
  kernel,
  entry,
  grid,
  dynamicSharedBytes = 0,
  parameters,
}: Launch): Uint8Array {
  const { fields, bytes } = entry.parameters;
  const encoded = new Uint8Array(headerBytes + Math.ceil(bytes / 8) * 8);
  const view = new DataView(encoded.buffer);
  const [x, y = 1, z = 1] = grid;
  [kernel, x, y, z, entry.threads, dynamicSharedBytes, bytes].forEach((word, i) =>
    view.setUint32(4 * i, word, true),
  );
  for (const { name, kind, offset } of fields) {
    const value = parameters[name];
    const at = headerBytes + offset;
    if (value === undefined) throw new TypeError(`${entry.name}: ${name} is missing`);
    if (kind === 'float') view.setFloat32(at, value, true);
    else if (!Number.isSafeInteger(value))
      throw new TypeError(`${entry.name}: expected a whole number as ${name}, got ${value}`);
    else if (kind === 'pointer') setAddress(view, at, value);
    else if (value < (kind === 'int' ? -(2 ** 31) : 0) || value >= (kind === 'int' ? 2 ** 31 : 2 ** 32))
      throw new RangeError(`${entry.name}: expected 32 bits as ${name}, got ${value}`);
    else view.setUint32(at, value >>> 0, true);
  }
  // Each field has a value, so a larger number means an unknown one.
  const names = Object.keys(parameters);
  if (names.length === fields.length) return encoded;
  const unknown = names.filter((name) => !fields.some((field) => field.name === name));
  throw new TypeError(`${entry.name} has no ${unknown.join(', ')}`);
}

/** Addresses are integers below 2^53. */
function setAddress(view: DataView, at: number, address: number): void {
  view.setUint32(at, address >>> 0, true);
  view.setUint32(at + 4, Math.floor(address / 2 ** 32), true);
}

export interface ProductLaunch {
  readonly plan: number;
  readonly alpha: number;
  readonly beta: number;
  readonly a: number;
  readonly b: number;
  readonly c: number;
  readonly d: number;
  readonly scaleA: number;
  readonly scaleB: number;
}

const productCommand = 0xffffffff;
const productBytes = 64;

/** A product in a list of launches: ProductArguments of host/products.h. */
export function encodeProduct({ plan, alpha, beta, a, b, c, d, scaleA, scaleB }: ProductLaunch): Uint8Array {
  const encoded = new Uint8Array(headerBytes + productBytes);
  const view = new DataView(encoded.buffer);
  view.setUint32(0, productCommand, true);
  view.setUint32(24, productBytes, true);
  view.setUint32(headerBytes, plan, true);
  view.setFloat32(headerBytes + 4, alpha, true);
  view.setFloat32(headerBytes + 8, beta, true);
  [a, b, c, d, scaleA, scaleB].forEach((address, i) => setAddress(view, headerBytes + 16 + 8 * i, address));
  return encoded;
}
