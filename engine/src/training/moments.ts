import { tensor, tidy, variable, zerosLike, type Variable } from '@tensorflow/tfjs-core';
import type { StoredValues, TensorSource } from '../io/safetensors.js';
import { decode, encode, zeroSigned, zeroUnsigned, type CodedValues } from '../ops/momentCodes.js';
import type { EntryMoments } from './momentReset.js';

/** Reads what a checkpoint has under a name; null where it has nothing. */
export type MomentReader = (name: string) => Promise<StoredValues | null>;

/** Both moments of one parameter, in float32. */
export class Float32Moments {
  readonly first: Variable;
  readonly second: Variable;

  constructor(parameter: Variable) {
    const zeros = () => tidy(() => variable(zerosLike(parameter), false));
    this.first = zeros();
    this.second = zeros();
  }

  /** Copies. */
  values(): EntryMoments {
    return {
      first: this.first.dataSync<'float32'>().slice(),
      second: this.second.dataSync<'float32'>().slice(),
    };
  }

  /** Forgets the entries that are zero in `values`, and changes no other. */
  forget({ first, second }: EntryMoments): void {
    assignValues(this.first, first);
    assignValues(this.second, second);
  }

  *stored(name: string): Generator<TensorSource> {
    const source = (suffix: string, tensor: Variable): TensorSource => ({
      name: `${name}.${suffix}`,
      shape: tensor.shape,
      dtype: 'F32',
      read: () => tensor.dataSync<'float32'>(),
    });
    yield source('first_moment', this.first);
    yield source('second_moment', this.second);
  }

  async restore(name: string, read: MomentReader): Promise<void> {
    for (const moment of ['first', 'second'] as const) {
      const kept = await readMoment(`${name}.${moment}_moment`, read);
      assignValues(this[moment], kept instanceof Float32Array ? kept : decode(kept));
    }
  }

  dispose(): void {
    this.first.dispose();
    this.second.dispose();
  }
}

/** Both moments of one parameter in eight bits, outside tfjs, which has no such type. */
export class CodedMoments {
  readonly first: CodedValues<Int8Array>;
  readonly second: CodedValues<Uint8Array>;
  private readonly shape: readonly number[];

  constructor(parameter: Variable) {
    this.shape = parameter.shape;
    this.first = zeroSigned(parameter.size);
    this.second = zeroUnsigned(parameter.size);
  }

  values(): EntryMoments {
    return { first: decode(this.first), second: decode(this.second) };
  }

  /** Scales stay, so entries that stay keep their codes: what they stand for does not change. */
  forget(values: EntryMoments): void {
    for (const moment of ['first', 'second'] as const) {
      const { codes } = this[moment];
      values[moment].forEach((value, entry) => {
        if (value === 0) codes[entry] = 0;
      });
    }
  }

  *stored(name: string): Generator<TensorSource> {
    for (const moment of ['first', 'second'] as const) {
      const { codes, scales } = this[moment];
      const dtype = codes instanceof Int8Array ? 'I8' : 'U8';
      yield { name: `${name}.${moment}_moment`, shape: this.shape, dtype, read: () => codes };
      yield {
        name: `${name}.${moment}_moment_scales`,
        shape: [scales.length],
        dtype: 'F32',
        read: () => scales,
      };
    }
  }

  async restore(name: string, read: MomentReader): Promise<void> {
    for (const moment of ['first', 'second'] as const) {
      const kept = await readMoment(`${name}.${moment}_moment`, read);
      if (kept instanceof Float32Array) {
        encode(this[moment], kept);
      } else {
        this[moment].codes.set(kept.codes);
        this[moment].scales.set(kept.scales);
      }
    }
  }

  dispose(): void {
    // Plain arrays: the collector has them.
  }
}

/** As the checkpoint has it: a run that is begun again with another type of moments takes over their values. */
async function readMoment(name: string, read: MomentReader): Promise<Float32Array | CodedValues> {
  const codes = await read(name);
  if (codes instanceof Float32Array) return codes;
  const scales = await read(`${name}_scales`);
  if (codes === null || !(scales instanceof Float32Array)) throw new Error(`${name} is not whole`);
  return { codes, scales };
}

/** Overwrites a variable, whatever its shape. */
export function assignValues(target: Variable, values: Float32Array): void {
  tidy(() => target.assign(tensor(values, target.shape)));
}
