import type { Tensor } from '@tensorflow/tfjs-core';
import type { TensorSource } from '../io/safetensors.js';
import type { Parameter, ParameterRole } from '../model/parameter.js';
import { adamWInPlace, codedAdamWInPlace, type AdamWUpdate, type CodedAdamWUpdate } from '../ops/adamW.js';
import type { MomentReset, OptimizerSettings } from '../plan/runSpec.js';
import { countZeros, pruneAtRandom, pruneByMagnitude, zeroAll } from './momentReset.js';
import { CodedMoments, Float32Moments, type MomentReader } from './moments.js';

/** Smaller parameters, and gains, keep float32 moments: nothing is saved there, and they are sensitive. */
const codedSizeMin = 4096;

/**
 * AdamW (Loshchilov and Hutter 2019) with its state by the name of the parameter, so that parameters may come and go
 * with the phases of a run. Each group counts its own updates for the bias correction: adapters start anew at every
 * restart while embedding, norms and head go on.
 */
export class AdamW {
  private readonly moments = new Map<string, { role: ParameterRole; moments: Moments }>();
  private readonly counts: Record<MomentGroup, number> = { shared: 0, base: 0, adapter: 0, scale: 0 };

  constructor(
    private readonly settings: OptimizerSettings,
    /** Learning rate of B over that of all others. */
    private readonly bLearningRateRatio = 1,
  ) {}

  /** One update in place; each gradient is multiplied by `gradientScale` first (clipping without another pass). */
  apply(
    parameters: readonly Parameter[],
    gradients: ReadonlyMap<string, Tensor>,
    learningRate: number,
    gradientScale = 1,
  ): void {
    for (const [group, members] of byGroup(parameters)) {
      const count = ++this.counts[group];
      // LoRA+: B by itself where it learns at another rate.
      const isApart = ({ role }: Parameter) => role === 'adapterB' && this.bLearningRateRatio !== 1;
      const update = (some: Parameter[], rate: number) =>
        this.update(some, gradients, count, rate, gradientScale);
      update(
        members.filter((member) => !isApart(member)),
        learningRate,
      );
      update(members.filter(isApart), learningRate * this.bLearningRateRatio);
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
    for (const { role, moments } of this.moments.values()) {
      if (groupOf[role] !== 'adapter') continue;
      const values = moments.values();
      if (mode === 'zero') zeroAll(values);
      else if (mode === 'random') pruneAtRandom(values, ratio, uniform);
      else pruneByMagnitude(values, ratio);
      zeros += countZeros(values.first) + countZeros(values.second);
      total += values.first.length + values.second.length;
      moments.forget(values);
    }
    if (mode === 'zero') this.counts.adapter = 0;
    return total === 0 ? 1 : zeros / total;
  }

  /** Frees the moments of a group, which begins anew when it is trained again. */
  drop(group: MomentGroup): void {
    for (const [name, { role, moments }] of this.moments) {
      if (groupOf[role] !== group) continue;
      moments.dispose();
      this.moments.delete(name);
    }
    this.counts[group] = 0;
  }

  /** Updates that each group has had since it began. */
  get stepCounts(): Readonly<Record<MomentGroup, number>> {
    return { ...this.counts };
  }

  /** Every moment as it is stored: `<parameter>.first_moment` and `<parameter>.second_moment`, codes with `_scales` beside them. */
  *state(): Generator<TensorSource> {
    for (const [name, { moments }] of this.moments) yield* moments.stored(name);
  }

  /** Takes over what `state` and `stepCounts` gave. `read` returns null where a parameter had no moments yet. */
  async restore(
    parameters: Iterable<Parameter>,
    stepCounts: Readonly<Record<MomentGroup, number>>,
    read: MomentReader,
  ): Promise<void> {
    Object.assign(this.counts, stepCounts);
    for (const parameter of parameters) {
      if ((await read(`${parameter.name}.first_moment`)) === null) continue;
      await this.momentsOf(parameter).restore(parameter.name, read);
    }
  }

  dispose(): void {
    for (const { moments } of this.moments.values()) moments.dispose();
    this.moments.clear();
  }

  private update(
    parameters: Parameter[],
    gradients: ReadonlyMap<string, Tensor>,
    count: number,
    learningRate: number,
    gradientScale: number,
  ): void {
    const { beta1, beta2, epsilon, weightDecay } = this.settings;
    const updates: AdamWUpdate[] = [];
    const codedUpdates: CodedAdamWUpdate[] = [];
    for (const parameter of parameters) {
      const gradient = gradients.get(parameter.name);
      if (gradient === undefined) throw new Error(`No gradient for ${parameter.name}`);
      const moments = this.momentsOf(parameter);
      parameter.version++;
      const update = { parameter: parameter.variable, gradient };
      if (moments instanceof Float32Moments)
        updates.push({ ...update, first: moments.first, second: moments.second });
      else codedUpdates.push({ ...update, first: moments.first, second: moments.second });
    }
    const options = {
      learningRate,
      beta1,
      beta2,
      epsilon,
      weightDecay,
      correction1: 1 - beta1 ** count,
      correction2: 1 - beta2 ** count,
      gradientScale,
    };
    adamWInPlace(updates, options);
    codedAdamWInPlace(codedUpdates, options);
  }

  private momentsOf({ name, role, variable }: Parameter): Moments {
    const known = this.moments.get(name);
    if (known !== undefined) return known.moments;
    const coded = this.settings.momentType === 'int8' && variable.rank > 1 && variable.size >= codedSizeMin;
    const moments = coded ? new CodedMoments(variable) : new Float32Moments(variable);
    this.moments.set(name, { role, moments });
    return moments;
  }
}

/** `base` exists in full-rank phases only, `adapter` is A and B, `scale` the trainable scales. */
export type MomentGroup = 'shared' | 'base' | 'adapter' | 'scale';

type Moments = Float32Moments | CodedMoments;

const groupOf: Record<ParameterRole, MomentGroup> = {
  shared: 'shared',
  base: 'base',
  adapterA: 'adapter',
  adapterB: 'adapter',
  adapterScale: 'scale',
};

function byGroup(parameters: readonly Parameter[]): Map<MomentGroup, Parameter[]> {
  const groups = new Map<MomentGroup, Parameter[]>();
  for (const parameter of parameters) {
    const group = groupOf[parameter.role];
    const members = groups.get(group);
    if (members === undefined) groups.set(group, [parameter]);
    else members.push(parameter);
  }
  return groups;
}
