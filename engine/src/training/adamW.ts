import { tensor, tidy, variable, zerosLike, type Tensor, type Variable } from '@tensorflow/tfjs-core';
import type { Parameter, ParameterRole } from '../model/parameter.js';
import { adamWInPlace } from '../ops/adamW.js';
import type { MomentReset, OptimizerSettings } from '../plan/runSpec.js';
import { countZeros, pruneAtRandom, pruneByMagnitude, zeroAll } from './momentReset.js';

/**
 * AdamW (Loshchilov and Hutter 2019) with its state by the name of the parameter, so that parameters may come and go
 * with the phases of a run. Each group counts its own updates for the bias correction: adapters start anew at every
 * restart while embedding, norms and head go on.
 */
export class AdamW {
  private readonly moments = new Map<string, Moments>();
  private readonly counts: Record<MomentGroup, number> = { shared: 0, base: 0, adapter: 0, scale: 0 };

  constructor(private readonly settings: OptimizerSettings) {}

  /** One update in place; each gradient is multiplied by `gradientScale` first (clipping without another pass). */
  apply(
    parameters: readonly Parameter[],
    gradients: ReadonlyMap<string, Tensor>,
    learningRate: number,
    gradientScale = 1,
  ): void {
    const { beta1, beta2, epsilon, weightDecay } = this.settings;
    for (const group of new Set(parameters.map(({ role }) => groupOf[role]))) this.counts[group]++;
    for (const parameter of parameters) {
      const gradient = gradients.get(parameter.name);
      if (gradient === undefined) throw new Error(`No gradient for ${parameter.name}`);
      const count = this.counts[groupOf[parameter.role]];
      const { first, second } = this.momentsOf(parameter);
      parameter.version++;
      adamWInPlace(parameter.variable, first, second, gradient, {
        learningRate,
        beta1,
        beta2,
        epsilon,
        weightDecay,
        correction1: 1 - beta1 ** count,
        correction2: 1 - beta2 ** count,
        gradientScale,
      });
    }
  }

  /**
   * Forgets the moments of A and B, and of nothing else, and tells which share of them is zero afterwards. `zero` also
   * starts their count anew: with zero moments and an old count the first update would be sqrt(1 - beta2) / (1 - beta1)
   * times too large. The pruned modes go on counting, as the authors' code does. `uniform` is drawn from in `random`.
   */
  forgetAdapters(mode: MomentReset, ratio: number, uniform: () => number): number {
    let zeros = 0;
    let total = 0;
    for (const { role, first, second } of this.moments.values()) {
      if (groupOf[role] !== 'adapter') continue;
      const values = {
        first: first.dataSync<'float32'>().slice(),
        second: second.dataSync<'float32'>().slice(),
      };
      if (mode === 'zero') zeroAll(values);
      else if (mode === 'random') pruneAtRandom(values, ratio, uniform);
      else pruneByMagnitude(values, ratio);
      zeros += countZeros(values.first) + countZeros(values.second);
      total += values.first.length + values.second.length;
      assignValues(first, values.first);
      assignValues(second, values.second);
    }
    if (mode === 'zero') this.counts.adapter = 0;
    return total === 0 ? 1 : zeros / total;
  }

  /** Frees the moments of the base, which is frozen from now on. */
  dropBase(): void {
    for (const [name, { role, first, second }] of this.moments) {
      if (groupOf[role] !== 'base') continue;
      first.dispose();
      second.dispose();
      this.moments.delete(name);
    }
    this.counts.base = 0;
  }

  /** Updates that each group has had since it began. */
  get stepCounts(): Readonly<Record<MomentGroup, number>> {
    return { ...this.counts };
  }

  /** Every moment under a name of its own, `<parameter>.first_moment` and `<parameter>.second_moment`. */
  *state(): Generator<{ name: string; tensor: Tensor }> {
    for (const [name, { first, second }] of this.moments) {
      yield { name: `${name}.first_moment`, tensor: first };
      yield { name: `${name}.second_moment`, tensor: second };
    }
  }

  /** Takes over what `state` and `stepCounts` gave. `read` returns null where a parameter had no moments yet. */
  async restore(
    parameters: Iterable<Parameter>,
    stepCounts: Readonly<Record<MomentGroup, number>>,
    read: (name: string) => Promise<Float32Array | null>,
  ): Promise<void> {
    Object.assign(this.counts, stepCounts);
    for (const parameter of parameters) {
      const first = await read(`${parameter.name}.first_moment`);
      const second = await read(`${parameter.name}.second_moment`);
      if (first === null || second === null) continue;
      const moments = this.momentsOf(parameter);
      assignValues(moments.first, first);
      assignValues(moments.second, second);
    }
  }

  dispose(): void {
    for (const { first, second } of this.moments.values()) {
      first.dispose();
      second.dispose();
    }
    this.moments.clear();
  }

  private momentsOf(parameter: Parameter): Moments {
    let moments = this.moments.get(parameter.name);
    if (moments === undefined) {
      const zeros = () => tidy(() => variable(zerosLike(parameter.variable), false));
      moments = { role: parameter.role, first: zeros(), second: zeros() };
      this.moments.set(parameter.name, moments);
    }
    return moments;
  }
}

/** `base` exists in full-rank phases only, `adapter` is A and B, `scale` the trainable scales. */
export type MomentGroup = 'shared' | 'base' | 'adapter' | 'scale';

interface Moments {
  role: ParameterRole;
  first: Variable;
  second: Variable;
}

const groupOf: Record<ParameterRole, MomentGroup> = {
  shared: 'shared',
  base: 'base',
  adapterA: 'adapter',
  adapterB: 'adapter',
  adapterScale: 'scale',
};

/** Overwrites a variable, whatever its shape. */
export function assignValues(target: Variable, values: Float32Array): void {
  tidy(() => target.assign(tensor(values, target.shape)));
}
