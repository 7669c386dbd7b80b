import { adapterStackBytes, matricesAtOnce, signStackBytes } from '../../plan/cardSigns.js';
import type * as api from '../device.js';
import type { CardMemory } from './cardMemory.js';
import type { CardResult } from './cardResult.js';
import { tight, type Arithmetic } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import { matricesOf, matrixSigns, newStack, type Stack } from './matrixSign.js';
import type { MemberTables } from './memberTables.js';
import { Scope } from './scope.js';

/** Root mean square of a Muon update per unit of learning rate: the same as AdamW's (arXiv 2502.16982). */
const updateSize = 0.2;
/** Largest singular value of a step's change to B, however small A is. */
const bStepMax = 0.2;

/** What the kernels of a group share. */
interface Step {
  readonly clip: api.Clip;
  readonly momentum: number;
}

/** Updates along the sign of momentum: Muon, and LoRA-Muon, in which each factor is whitened by the other before and after. */
export class MatrixUpdates {
  constructor(
    private readonly calls: MatrixCalls,
    private readonly memory: CardMemory,
    private readonly tables: MemberTables,
    private readonly arithmetic: Arithmetic,
  ) {}

  muon({ shape, members }: api.MatrixGroup, { learningRate, weightDecay, ...step }: api.MuonOptions): void {
    const { rows, columns } = shape;
    const by = updateScale(learningRate, rows, columns);
    for (const some of inTurns(members, signStackBytes(rows, columns, this.arithmetic))) {
      const scope = new Scope(this.memory);
      const isTurned = rows > columns;
      const u = this.momentum(some, shape, isTurned, step, scope);
      const signs = matrixSigns(this.calls, u, this.arithmetic, scope);
      this.stepAlong(some, shape, signs, isTurned, step, { by, decay: learningRate * weightDecay });
      scope.end();
    }
  }

  loraMuon({ shape, members }: api.AdapterGroup, options: api.LoraMuonOptions): void {
    const bytes = adapterStackBytes(shape, this.arithmetic);
    for (const some of inTurns(members, bytes)) this.stepOfAdapters(shape, some, options);
  }

  /** New steps of both factors, each computed from the old values: dA = sign(uA L_B⁻ᵀ) L_B⁻¹, dB = L_A⁻ᵀ sign(L_A⁻¹ uB). */
  private stepOfAdapters(
    { inFeatures, outFeatures, rank }: api.AdapterGroup['shape'],
    members: api.AdapterGroup['members'],
    { learningRate, weightDecay, scale, ...step }: api.LoraMuonOptions,
  ): void {
    const { calls, arithmetic } = this;
    const scope = new Scope(this.memory);
    const [as, bs] = [members.map(({ a }) => a), members.map(({ b }) => b)];
    const trainsA = as.some(({ gradient }) => gradient !== null);
    const [shapeA, shapeB] = [
      { rows: inFeatures, columns: rank },
      { rows: rank, columns: outFeatures },
    ];
    // uA is transposed, [rank, in].
    const uA = trainsA ? this.momentum(as, shapeA, true, step, scope) : null;
    const uB = this.momentum(bs, shapeB, false, step, scope);
    const budget = updateScale(learningRate, inFeatures, outFeatures) / Math.abs(scale) / (trainsA ? 2 : 1);
    // A rate of 0 changes nothing, and would leave B = 0 without damping.
    if (budget === 0) return scope.end();
    const dampingFor = (stepMax: number): number => (budget / stepMax) ** 2;
    const count = members.length;
    const whitened = (inverse: Stack, u: Stack): Stack => {
      const to = newStack(scope, count, rank, u.all.columns);
      this.multiply(to, inverse, u, false);
      const signs = matrixSigns(calls, to, arithmetic, scope);
      this.multiply(u, inverse, signs, true);
      return u;
    };
    const inverseOfA = this.inverseFactors(as, shapeA, true, dampingFor(bStepMax), scope);
    // However small B is, as after a merge, A takes at most half a step of Muon: by longer ones it would lose its directions.
    const stepMaxOfA = updateScale(learningRate, inFeatures, rank) / 2;
    const inverseOfB = uA && this.inverseFactors(bs, shapeB, false, dampingFor(stepMaxOfA), scope);
    const dA = uA && whitened(inverseOfB!, uA);
    const dB = whitened(inverseOfA, uB);
    if (dA !== null) this.stepAlong(as, shapeA, dA, true, step, { by: budget, decay: 0 });
    // Decay is applied to one factor only, so that it applies to the product once.
    this.stepAlong(bs, shapeB, dB, false, step, { by: budget, decay: learningRate * weightDecay });
    scope.end();
  }

  /** to = op(inverse) u, in float32. */
  private multiply(to: Stack, inverse: Stack, u: Stack, isTransposed: boolean): void {
    const [factors, from] = [matricesOf(inverse), matricesOf(u)];
    this.calls.products(
      matricesOf(to).map((matrix, i) => ({ to: matrix, a: factors[i]!, b: from[i]! })),
      { transposeA: isTransposed },
    );
  }

  /** L⁻¹ of the damped Gram matrix of each factor, over its longer side. */
  private inverseFactors(
    members: readonly api.MatrixMember[],
    { rows, columns }: api.MatrixShape,
    isTall: boolean,
    damping: number,
    scope: Scope,
  ): Stack {
    const rank = isTall ? columns : rows;
    const count = members.length;
    const [gram, inverse] = [newStack(scope, count, rank, rank), newStack(scope, count, rank, rank)];
    const to = matricesOf(gram);
    members.forEach(({ parameter }, i) => {
      const factor = tight(
        this.memory.floats(parameter, rows * columns, 'loraMuon: parameter'),
        rows,
        columns,
      );
      const sides = isTall ? { transposeA: true } : { transposeB: true };
      this.calls.product(to[i]!, factor, factor, sides);
    });
    const work = scope.take(16 * count * rank * rank);
    this.calls.launch({
      file: 'muon',
      kernel: 'inverse_factor',
      grid: [count],
      parameters: {
        ...{ inverse: inverse.all.address, gram: gram.all.address, work },
        ...{ rank, stride: gram.all.stride, damping },
      },
    });
    return inverse;
  }

  /** The direction in which the members are updated, [rows, columns], or transposed. */
  private momentum(
    members: readonly api.MatrixMember[],
    { rows, columns }: api.MatrixShape,
    isTurned: boolean,
    step: Step,
    scope: Scope,
  ): Stack {
    const u = isTurned
      ? newStack(scope, members.length, columns, rows)
      : newStack(scope, members.length, rows, columns);
    const isCoded = 'codes' in members[0]!.first!;
    this.calls.launch({
      file: 'muon',
      kernel: isCoded ? 'coded_momentum' : 'momentum',
      grid: [Math.ceil((rows * columns) / 256), members.length],
      parameters: {
        ...this.common(members, { rows, columns }, step),
        ...{ u: u.all.address, stride: u.all.stride, is_turned: Number(isTurned), momentum: step.momentum },
      },
    });
    return u;
  }

  private stepAlong(
    members: readonly api.MatrixMember[],
    { rows, columns }: api.MatrixShape,
    d: Stack,
    isTurned: boolean,
    step: Step,
    { by, decay }: { by: number; decay: number },
  ): void {
    this.calls.launch({
      file: 'muon',
      kernel: 'step_along',
      grid: [Math.ceil((rows * columns) / 256), members.length],
      parameters: {
        ...this.common(members, { rows, columns }, step),
        ...{ d: d.all.address, stride: d.all.stride, is_turned: Number(isTurned), kept: 1 - decay, by },
      },
    });
    for (const { parameter } of members) this.tables.updated(parameter, columns);
  }

  private common(members: readonly api.MatrixMember[], { rows, columns }: api.MatrixShape, { clip }: Step) {
    const length = rows * columns;
    const isCoded = 'codes' in members[0]!.first!;
    // As struct Member of moments.h, without a second moment.
    const words = members.flatMap(({ parameter, gradient, first }) => {
      if (gradient === null || first === null)
        throw new TypeError('One group must train all of its matrices');
      return [
        this.memory.floats(parameter, length, 'muon: parameter'),
        this.memory.floats(gradient, length, 'muon: gradient'),
        ...this.tables.momentWords(first, length, 'int8', isCoded, 'muon: first'),
        ...[0, 0],
        ...this.tables.roundedWords(parameter, columns),
      ];
    });
    const result = (clip.result as CardResult).address;
    return { members: this.tables.of(words), result, rows, columns, norm_max: clip.normMax };
  }
}

function updateScale(learningRate: number, rows: number, columns: number): number {
  return learningRate * updateSize * Math.sqrt(Math.max(rows, columns));
}

/** Splits members that would need too much memory into batches, depending only on their shapes. */
function inTurns<T>(members: readonly T[], bytes: number): T[][] {
  const count = matricesAtOnce(bytes);
  return Array.from({ length: Math.ceil(members.length / count) }, (_, i) =>
    members.slice(i * count, (i + 1) * count),
  );
}
