import type { Clip, Device, DeviceBuffer, MatrixMember, Moment } from '../device/device.js';
import type { TensorSource } from '../io/safetensors.js';
import type { Parameter, ParameterRole } from '../model/parameter.js';
import type { GradientBuffer } from '../model/gradientBuffer.js';
import type {
  AdapterOptimizer,
  FullRankOptimizer,
  MomentReset,
  OptimizerSettings,
  Phase,
} from '../plan/runSpec.js';
import { countZeros, pruneAtRandom, pruneByMagnitude, zeroAll } from './momentReset.js';
import { CodedMoments, Float32Moments, type MomentReader } from './moments.js';
import { groupOf, plainMethods, type MomentGroup, type OptimizerMethods } from './optimizerMethods.js';
import { turned, type Turns } from './oldSpan.js';
import { ShadowMoments } from './shadowMoments.js';
import type { Staging } from './staging.js';

/** Smaller parameters, and gains, keep float32 moments: they save little and are sensitive. */
const codedSizeMin = 4096;

/**
 * Updates parameters. State is kept by parameter name, so that parameters can be added and removed with the phases of a run; each group
 * uses the optimizer that the job has for it. Each group counts its own updates for AdamW's bias correction (Loshchilov and Hutter 2019):
 * adapters start again at every restart while embedding, norms and head continue.
 */
export class Optimizer {
  private readonly moments = new Map<string, { role: ParameterRole; moments: Moments }>();
  private readonly counts: Record<MomentGroup, number> = { shared: 0, base: 0, adapter: 0, scale: 0 };

  constructor(
    private readonly device: Device,
    private readonly settings: OptimizerSettings,
    private readonly methods: OptimizerMethods = plainMethods,
  ) {}

  /**
   * Updates in place all parameters that have gradients, in a step of the given phase, unless the device finds that `clip` forbids it: then
   * call `takeBack`.
   */
  apply(gradients: GradientBuffer, learningRate: number, clip: Clip, phase: Phase = 'adapter'): void {
    for (const [group, members] of byGroup(gradients.parameters)) {
      const count = ++this.counts[group];
      const step: Step = { gradients, count, learningRate, clip };
      // Biases are base weights but not matrices.
      const matrices = members.filter(({ shape }) => shape.length === 2);
      const others = members.filter(({ shape }) => shape.length !== 2);
      const method = this.methodOf(group, phase);
      if (method === 'adamw') this.adamW(members, step);
      else if (method === 'loraMuon') this.loraMuon(members, step);
      else {
        if (method === 'muon') this.muon(matrices, step);
        else this.apolloMini(matrices, step);
        this.adamW(others, step);
      }
      for (const parameter of members) parameter.version++;
    }
  }

  /** Undoes the count of the last `apply`, which changed nothing. */
  takeBack(gradients: GradientBuffer): void {
    for (const group of byGroup(gradients.parameters).keys()) this.counts[group]--;
  }

  /**
   * Resets the moments of A and B, and nothing else, and returns the fraction of them that is zero afterwards. `zero` also resets their
   * update count: with zero moments and an old count the first update would be sqrt(1 - beta2) / (1 - beta1) times too large. The pruning
   * modes keep the count, as the authors' code does. `uniform` supplies the random numbers of `random`.
   */
  async forgetAdapters(mode: MomentReset, ratio: number, uniform: () => number): Promise<number> {
    let zeros = 0;
    let total = 0;
    for (const moments of this.adapterMoments()) {
      const values = await moments.values();
      if (mode === 'zero') zeroAll(values);
      else if (mode === 'random') pruneAtRandom(values, ratio, uniform);
      else pruneByMagnitude(values, ratio);
      await moments.forget(values);
      // Measured on what is stored, not on what was intended.
      const { first, second } = await moments.values();
      zeros += countZeros(first) + countZeros(second);
      total += first.length + second.length;
    }
    if (mode === 'zero') this.counts.adapter = 0;
    return total === 0 ? 1 : zeros / total;
  }

  /**
   * Moments in the order in which an uninterrupted run created them, also in a resumed run: random draws follow it. If B has its own
   * learning rate, its moments come after those of A.
   */
  private adapterMoments(): Moments[] {
    const all = [...this.moments.values()].filter(({ role }) => groupOf[role] === 'adapter');
    const isLater = ({ role }: { role: ParameterRole }) =>
      this.methods.adapters === 'adamw' && this.methods.bLearningRateRatio !== 1 && role === 'adapterB';
    return [...all.filter((one) => !isLater(one)), ...all.filter(isLater)].map(({ moments }) => moments);
  }

  /**
   * Converts the momentum of B to the span of the new A (cycleStart.ts), resets that of A, whose gradient changes with B, and returns the
   * fraction of all moments that is zero afterwards. The update count continues.
   */
  async carryAdapters(turns: Turns | null): Promise<number> {
    let zeros = 0;
    let total = 0;
    for (const [name, { role, moments }] of this.moments) {
      if (groupOf[role] !== 'adapter' || moments instanceof ShadowMoments) continue;
      const { first } = await moments.values();
      const turn = role === 'adapterB' ? turns?.get(name.slice(0, name.lastIndexOf('.'))) : undefined;
      const next = turn === undefined ? new Float32Array(first.length) : turned(first, turn, turn.length);
      await moments.replaceFirst(next);
      zeros += countZeros((await moments.values()).first);
      total += first.length;
    }
    return total === 0 ? 1 : zeros / total;
  }

  /** Frees the moments of a group; they start at zero when it is trained again. */
  drop(group: MomentGroup): void {
    for (const [name, { role, moments }] of this.moments) {
      if (groupOf[role] !== group) continue;
      moments.dispose();
      this.moments.delete(name);
    }
    this.counts[group] = 0;
  }

  /** Moments of a group, which must all be in float32. */
  plainMoments(group: MomentGroup): DeviceBuffer[] {
    return [...this.moments.values()].flatMap(({ role, moments }) => {
      if (groupOf[role] !== group) return [];
      if (!(moments instanceof Float32Moments)) throw new Error(`Moments of ${group} are not in float32`);
      return [moments.first, moments.second].filter((buffer) => buffer !== null);
    });
  }

  /** Number of updates of each group since it began. */
  get stepCounts(): Readonly<Record<MomentGroup, number>> {
    return { ...this.counts };
  }

  /**
   * Every moment as stored: `<parameter>.first_moment` and `<parameter>.second_moment`, codes with additional `_scales`. If a staging is
   * given, each is read through it.
   */
  *state(staging?: Staging): Generator<TensorSource> {
    for (const [name, { moments }] of this.moments) yield* moments.stored(name, staging);
  }

  /** Restores what `state` and `stepCounts` returned. `read` returns null if a parameter had no moments yet. */
  async restore(
    parameters: Iterable<Parameter>,
    stepCounts: Readonly<Record<MomentGroup, number>>,
    read: MomentReader,
  ): Promise<void> {
    Object.assign(this.counts, stepCounts);
    for (const parameter of parameters) {
      const { name } = parameter;
      const has = async (suffix: string): Promise<boolean> => (await read(`${name}.${suffix}`)) !== null;
      // The stored names show which optimizer wrote them; the schedule may not, if a resumed run has no step of that phase left.
      if (await ShadowMoments.isStored(name, read))
        await this.momentsOf(parameter, () => new ShadowMoments(this.device, parameter)).restore(name, read);
      else if (await has('first_moment')) {
        const hasSecond = await has('second_moment');
        await this.momentsOf(parameter, () => this.newMoments(parameter, hasSecond)).restore(name, read);
      }
    }
  }

  dispose(): void {
    for (const { moments } of this.moments.values()) moments.dispose();
    this.moments.clear();
  }

  private methodOf(group: MomentGroup, phase: Phase): FullRankOptimizer | AdapterOptimizer {
    if (group === 'base') return this.methods.base(phase);
    return group === 'adapter' ? this.methods.adapters : 'adamw';
  }

  private adamW(parameters: readonly Parameter[], { learningRate, ...step }: Step): void {
    const { bLearningRateRatio } = this.methods;
    // LoRA+: B is updated separately if its learning rate differs.
    const isApart = ({ role }: Parameter) => role === 'adapterB' && bLearningRateRatio !== 1;
    for (const [some, rate] of [
      [parameters.filter((parameter) => !isApart(parameter)), learningRate],
      [parameters.filter(isApart), learningRate * bLearningRateRatio],
    ] as const) {
      const options = this.adamWOptions({ ...step, learningRate: rate });
      // In the order of the parameters, as in `restore`: resets at restarts draw in the order of the moments.
      for (const parameter of some) this.both(parameter);
      for (const [shape, members] of byShape(some)) {
        const group = members.map((parameter) => ({
          parameter: parameter.buffer,
          gradient: step.gradients.of(parameter)!,
          ...this.both(parameter),
        }));
        this.device.adamW({ shape, members: group }, options);
      }
    }
  }

  private muon(parameters: readonly Parameter[], step: Step): void {
    for (const [[rows, columns], members] of byShape(parameters)) {
      const group = members.map((parameter) => this.matrix(parameter, step.gradients));
      this.device.muon({ shape: { rows: rows!, columns: columns! }, members: group }, this.muonOptions(step));
    }
  }

  /** Adapters of the same shape and scale are updated together. */
  private loraMuon(parameters: readonly Parameter[], step: Step): void {
    for (const parameter of parameters) this.matrix(parameter, step.gradients); // in their order, as above
    const groups = new Map<string, { scale: number; members: [a: Parameter, b: Parameter][] }>();
    for (const b of parameters.filter(({ role }) => role === 'adapterB')) {
      const layer = b.name.slice(0, b.name.lastIndexOf('.'));
      const a = this.methods.parameter(`${layer}.lora_A`);
      const scale = this.methods.scaleOf(layer);
      const key = [...a.shape, ...b.shape, scale].join();
      const group = groups.get(key) ?? { scale, members: [] };
      group.members.push([a, b]);
      groups.set(key, group);
    }
    for (const { scale, members } of groups.values()) {
      const [a, b] = members[0]!;
      const shape = { inFeatures: a.shape[0]!, rank: a.shape[1]!, outFeatures: b.shape[1]! };
      const group = members.map(([one, other]) => ({
        a: this.matrix(one, step.gradients),
        b: this.matrix(other, step.gradients),
      }));
      this.device.loraMuon({ shape, members: group }, { ...this.muonOptions(step), scale });
    }
  }

  private apolloMini(parameters: readonly Parameter[], step: Step): void {
    for (const [[rows, columns], members] of byShape(parameters)) {
      const group = members.map((parameter) => {
        const moments = this.momentsOf(parameter, () => new ShadowMoments(this.device, parameter));
        moments.turn(this.methods.seed, step.count);
        const { projection, first, second, norm } = moments;
        const gradient = step.gradients.of(parameter)!;
        return { parameter: parameter.buffer, gradient, projection, first, second, norm };
      });
      const shape = { rows: rows!, columns: columns! };
      this.device.apolloMini({ shape, members: group }, this.adamWOptions(step));
    }
  }

  private adamWOptions({ count, learningRate, clip }: Pick<Step, 'count' | 'learningRate' | 'clip'>) {
    const { beta1, beta2, epsilon, weightDecay } = this.settings;
    const corrections = { correction1: 1 - beta1 ** count, correction2: 1 - beta2 ** count };
    return { learningRate, beta1, beta2, epsilon, weightDecay, ...corrections, clip };
  }

  private muonOptions({ learningRate, clip }: Step) {
    const { momentum, weightDecay } = this.settings;
    return { learningRate, momentum, weightDecay, clip };
  }

  /** A matrix with its single moment; an untrained factor has neither gradient nor moment. */
  private matrix(parameter: Parameter, gradients: GradientBuffer): MatrixMember {
    const gradient = gradients.of(parameter);
    const first = gradient && this.momentsOf(parameter, () => this.newMoments(parameter, false)).first;
    return { parameter: parameter.buffer, gradient, first };
  }

  private both(parameter: Parameter): { first: Moment; second: Moment } {
    const { first, second } = this.momentsOf(parameter, () => this.newMoments(parameter, true));
    return { first, second: second! };
  }

  private newMoments(parameter: Parameter, hasSecond: boolean): Float32Moments | CodedMoments {
    const { shape, buffer } = parameter;
    const coded = this.settings.momentType === 'int8' && shape.length > 1 && buffer.length >= codedSizeMin;
    const options = { hasSecond };
    return coded
      ? new CodedMoments(this.device, parameter, options)
      : new Float32Moments(this.device, parameter, options);
  }

  private momentsOf<T extends Moments>({ name, role }: Parameter, make: () => T): T {
    const known = this.moments.get(name);
    // Moments of another kind were dropped when the phase changed.
    if (known !== undefined) return known.moments as T;
    const moments = make();
    this.moments.set(name, { role, moments });
    return moments;
  }
}

interface Step {
  gradients: GradientBuffer;
  /** Number of updates of the group, including this one. */
  count: number;
  learningRate: number;
  clip: Clip;
}

type Moments = Float32Moments | CodedMoments | ShadowMoments;

/** Groups parameters by shape: each group is updated by one call, and its moments are of one kind. */
function byShape(parameters: readonly Parameter[]): [shape: readonly number[], members: Parameter[]][] {
  const groups = new Map<string, [readonly number[], Parameter[]]>();
  for (const parameter of parameters) {
    const key = parameter.shape.join();
    const group = groups.get(key) ?? [parameter.shape, []];
    group[1].push(parameter);
    groups.set(key, group);
  }
  return [...groups.values()];
}

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
