import { expect } from 'vitest';
import { roundToBfloat16 } from '../engine/nativeReference.js';
import { openModelCard, sanitizer, schedules, type ModelCard } from './modelCard.js';

export type Activation = 'bf16' | 'float';

/** Memory of the model of a card, in the layouts that kernels read. */
export class Bench {
  constructor(
    readonly card: ModelCard,
    readonly activation: Activation = 'bf16',
  ) {}

  /** Parameters and sums: contiguous float32. */
  floats(values: Float32Array): number {
    return this.upload(values);
  }
  ints(values: readonly number[]): number {
    return this.upload(Int32Array.from(values));
  }
  bytes(values: Uint8Array): number {
    return this.upload(values);
  }
  doubles(values: readonly number[]): number {
    return this.upload(Float64Array.from(values));
  }
  /** Uninitialized memory. */
  empty(bytes: number): number {
    return this.card.allocate(Math.max(bytes, 16));
  }

  /** Activations [rows, columns] with a stride; the gaps between rows stay NaN. */
  activations(values: Float32Array, rows: number, columns: number, stride: number): number {
    const address = this.empty(rows * stride * this.activationBytes);
    for (let row = 0; row < rows; row++) {
      const of = values.subarray(row * columns, (row + 1) * columns);
      this.card.upload(address + row * stride * this.activationBytes, this.encode(of));
    }
    return address;
  }
  /** Rounded, contiguous. */
  bf16(values: Float32Array): number {
    return this.upload(words(values));
  }
  emptyActivations(rows: number, stride: number): number {
    return this.empty(rows * stride * this.activationBytes);
  }

  readFloats(address: number, length: number): Float32Array {
    return this.read(new Float32Array(length), address);
  }
  readDoubles(address: number, length: number): Float64Array {
    return this.read(new Float64Array(length), address);
  }
  readBytes(address: number, length: number): Uint8Array {
    return this.read(new Uint8Array(length), address);
  }
  readActivations(address: number, rows: number, columns: number, stride: number): Float32Array {
    const all = new Float32Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      const at = address + row * stride * this.activationBytes;
      all.set(
        this.activation === 'float'
          ? this.read(new Float32Array(columns), at)
          : fromBfloat16(this.read(new Uint16Array(columns), at)),
        row * columns,
      );
    }
    return all;
  }

  launch(
    file: string,
    kernel: string,
    grid: readonly [number, number?, number?],
    parameters: Readonly<Record<string, number>>,
    options: { definitions?: readonly string[]; dynamicSharedBytes?: number } = {},
  ): void {
    const definitions = [`ACTIVATION=${this.activation}`, ...(options.definitions ?? [])];
    this.card.kernels.launch({ file, kernel, grid, parameters, ...options, definitions });
  }

  get activationBytes(): number {
    return this.activation === 'float' ? 4 : 2;
  }

  private encode(values: Float32Array): ArrayBufferView {
    if (this.activation === 'float') return values.slice();
    return words(values);
  }
  private upload(values: ArrayBufferView): number {
    const address = this.empty(values.byteLength);
    this.card.upload(address, values);
    return address;
  }
  read<T extends ArrayBufferView>(to: T, address: number): T {
    this.card.download(to, address);
    return to;
  }
}

const words = (values: Float32Array) =>
  Uint16Array.from(new Uint32Array(roundToBfloat16(values).buffer), (word) => word >>> 16);

export function fromBfloat16(words: Uint16Array): Float32Array {
  return new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer);
}

/** Result of `run`: requires the same bits in every order of threads, and no fault when every access is checked. */
export function onEverySchedule<T>(run: (bench: Bench) => T, activation: Activation = 'bf16'): T {
  const results = schedules.map((schedule) => once(run, activation, schedule, false));
  if (sanitizer === '') results.push(once(run, activation, schedules[0], true));
  for (const result of results.slice(1)) expect(result).toEqual(results[0]);
  return results[0]!;
}

/** In one order of threads, without checked accesses: for sizes that would take too long otherwise. */
export function onOneSchedule<T>(run: (bench: Bench) => T, activation: Activation = 'bf16'): T {
  return once(run, activation, schedules[0], false);
}

function once<T>(
  run: (bench: Bench) => T,
  activation: Activation,
  schedule: (typeof schedules)[number],
  checked: boolean,
): T {
  const card = openModelCard({ checked });
  try {
    card.model.takeFaults();
    card.model.setSchedule(schedule);
    const result = run(new Bench(card, activation));
    expect(card.model.takeFaults()).toEqual([]);
    return result;
  } finally {
    card.model.setSchedule(schedules[0]);
    card.close();
  }
}

/** Unit roundoff of the type of an activation. */
export const unitOf = (activation: Activation) => (activation === 'float' ? 2 ** -24 : 2 ** -8);
