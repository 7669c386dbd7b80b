import type { Clip, Device, ParameterGroup } from '../device/device.js';
import type { TensorSource } from '../io/safetensors.js';
import type { Parameter, ParameterRole } from '../model/parameter.js';
import type { GradientBuffer } from '../model/gradientBuffer.js';
import type { MomentReset, OptimizerSettings } from '../plan/runSpec.js';
import { countZeros, pruneAtRandom, pruneByMagnitude, zeroAll } from './momentReset.js';
import { CodedMoments, Float32Moments, type MomentReader } from './moments.js';
import type { Staging } from './staging.js';

/** Smaller parameters, and gains, keep float32 moments: nothing is saved there, and they are sensitive. */
const codedSizeMin = 4096;

/**
 * AdamW (Loshchilov and Hutter 2019) with its state by the name of the parameter, so that parameters may come and go
 * with the phases of a run. Each group counts its own updates for the bias correction: adapters start again at every
 * restart while embedding, norms and
 * head continue.
 */
export class AdamW {
  private readonly moments = new Map<string, { role: ParameterRole; moments: Moments }>();
  private readonly counts: Record<MomentGroup, number> = { shared: 0, base: 0, adapter: 0, scale: 0 };

  constructor(
    private readonly device: Device,
    private readonly settings: OptimizerSettings,
    /** Learning rate of B over that of all others. */
    private readonly bLearningRateRatio = 1,
  ) {}

  /** One update in place of all that the gradients are of, unless the device finds that `clip` forbids it: then `takeBack` it. */
  apply(gradients: GradientBuffer, learningRate: number, clip: Clip): void {
    for (const [group, members] of byGroup(gradients.parameters)) {
      const count = ++this.counts[group];
      // LoRA+: B by itself where it learns at another rate.
      const isApart = ({ role }: Parameter) => role === 'adapterB' && this.bLearningRateRatio !== 1;
      const update = (some: Parameter[], rate: number) => this.update(some, gradients, count, rate, clip);
      update(
        members.filter((member) => !isApart(member)),
        learningRate,
      );
      update(members.filter(isApart), learningRate * this.bLearningRateRatio);
    }
  }

  /** The last `apply` changed nothing: it does not count. */
  takeBack(gradients: GradientBuffer): void {
    for (const group of byGroup(gradients.parameters).keys()) this.counts[group]--;
  }

  /**
   * Forgets the moments of A and B, and of nothing else, and returns which share of them is zero afterwards. `zero` also
   * starts their count again: with zero moments and an old count the first update would be sqrt(1 - beta2) / (1 - beta1)
   * times too large. The pruned modes continue to count, as the authors' code does. `uniform` is drawn from in `random`.
   */
  async forgetAdapters(mode: MomentReset, ratio: number, uniform: () => number): Promise<number> {
    let zeros = 0;
    let total = 0;
    for (const { role, moments } of this.moments.values()) {
      if (groupOf[role] !== 'adapter') continue;
      const values = await moments.values();
      if (mode === 'zero') zeroAll(values);
      else if (mode === 'random') pruneAtRandom(values, ratio, uniform);
      else pruneByMagnitude(values, ratio);
      await moments.forget(values);
      // Of what is kept, not of what was meant to be.
      const { first, second } = await moments.values();
      zeros += countZeros(first) + countZeros(second);
      total += first.length + second.length;
    }
    if (mode === 'zero') this.counts.adapter = 0;
    return total === 0 ? 1 : zeros / total;
  }

  /** Frees the moments of a group, which begins at zero when it is trained again. */
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

  /** Every moment as it is stored: `<parameter>.first_moment` and `<parameter>.second_moment`, codes with `_scales` beside them. With a staging each is read through it. */
  *state(staging?: Staging): Generator<TensorSource> {
    for (const [name, { moments }] of this.moments) yield* moments.stored(name, staging);
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
    parameters: readonly Parameter[],
    gradients: GradientBuffer,
    count: number,
    learningRate: number,
    clip: Clip,
  ): void {
    const { beta1, beta2, epsilon, weightDecay } = this.settings;
    const correction1 = 1 - beta1 ** count;
    const correction2 = 1 - beta2 ** count;
    const options = { learningRate, beta1, beta2, epsilon, weightDecay, correction1, correction2, clip };
    for (const group of this.byShape(parameters, gradients)) this.device.adamW(group, options);
  }

  /** Parameters of one shape are updated by one call; those of a shape have moments of one kind. */
  private byShape(parameters: readonly Parameter[], gradients: GradientBuffer): ParameterGroup[] {
    const groups = new Map<
      string,
      { shape: readonly number[]; members: ParameterGroup['members'][number][] }
    >();
    for (const parameter of parameters) {
      const { shape, buffer } = parameter;
      const { first, second } = this.momentsOf(parameter);
      const group = groups.get(shape.join()) ?? { shape, members: [] };
      group.members.push({ parameter: buffer, gradient: gradients.of(parameter)!, first, second });
      groups.set(shape.join(), group);
      parameter.version++;
    }
    return [...groups.values()];
  }

  private momentsOf(parameter: Parameter): Moments {
    const { name, role, shape, buffer } = parameter;
    const known = this.moments.get(name);
    if (known !== undefined) return known.moments;
    const coded = this.settings.momentType === 'int8' && shape.length > 1 && buffer.length >= codedSizeMin;
    const moments = coded
      ? new CodedMoments(this.device, parameter)
      : new Float32Moments(this.device, parameter);
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
