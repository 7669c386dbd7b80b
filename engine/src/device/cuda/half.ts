import type { DeviceBuffer, ForwardMode, Layer, LayerGradients } from '../device.js';
import { Scope } from './scope.js';
import { JoinedLayers } from './joinedLayers.js';
import { LayerGroup, type GroupState } from './layerGroup.js';
import type { LinearPass } from './linear.js';
import { newMatrix, tight, typeOf, type Arithmetic, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import {
  keptInput,
  makesCodes,
  normBackward,
  normForward,
  roundsGradient,
  type NormGradients,
  type NormInput,
} from './norm.js';
import { newQuantized } from './quantized.js';

/** A half of a block: x + last(middle(first(norm(x)))); the outputs of `first`'s layers are adjacent columns. */
export interface HalfParts {
  readonly rows: number;
  /** Positions per sequence. */
  readonly time: number;
  readonly hidden: number;
  readonly gain: DeviceBuffer;
  readonly epsilon: number;
  readonly first: readonly Layer[];
  readonly last: Layer;
  readonly middle: Middle;
}

/** The part between the layers of a half: attention, or SwiGLU. */
export interface Middle {
  /** Columns of the input of `last`: with zero padding at the end if all layers of the half are joined. */
  innerWidth(isJoined: boolean): number;
  /** Type of the outputs of `first`, [rows, adjacent columns]. */
  typeOfMade(type: Matrix['type']): Matrix['type'];
  /** State for the backward pass is allocated from `kept`; `inner` may be part of it. `withCodes`: `inner` will be read in e4m3. */
  forward(
    made: Matrix,
    innerWidth: number,
    kept: Scope,
    temporary: Scope,
    withCodes: boolean,
  ): { inner: Matrix; state: MiddleState };
  /**
   * `dmade` is the gradient of `made`, with zeros between the layers; it may be read in e4m3 and may overwrite `made`. `inner` is the input
   * of `last`, for the gradients of that layer; it is valid until `between` ends.
   */
  backward(
    made: Matrix,
    dinner: Matrix,
    state: MiddleState,
    temporary: Scope,
    between: Scope,
    withCodes: boolean,
  ): { dmade: Matrix; inner: Matrix };
}

/** What the middle of a half keeps: attention its output and log-sum-exp, SwiGLU nothing. */
export interface MiddleState {
  readonly mixed: Matrix;
  readonly logSumExp: number;
  /** Queries and keys before the head norms; null without these. */
  readonly heads: Record<'q' | 'k', Matrix> | null;
}

/** State for the backward pass of a half. The norm of x is not included: recomputing it costs less than keeping it. */
export interface CardHalfState {
  readonly scope: Scope;
  /** The input as the backward pass reads it: rounded if products are rounded; null if nothing reads it. */
  readonly x: NormInput | null;
  readonly made: Matrix;
  readonly middle: MiddleState;
  readonly first: GroupState;
  readonly last: GroupState;
}

export function halfForward(
  calls: MatrixCalls,
  to: number,
  x: number,
  parts: HalfParts,
  { precision, keepsState }: Pick<ForwardMode, 'precision' | 'keepsState'>,
  run: Arithmetic,
): CardHalfState {
  const { rows, hidden, middle } = parts;
  const isProbe = precision === 'float32';
  const pass: LinearPass = { arithmetic: isProbe ? 'float32' : run, isProbe, time: parts.time };
  const type = typeOf(pass.arithmetic);
  const [scope, temporary] = [new Scope(calls.memory, 'pass'), new Scope(calls.memory)];
  const { first, last, innerWidth } = groupsOf(calls, parts, pass);
  const input: NormInput = { address: x, type: 'float' };
  const kept = !keepsState ? null : type === 'float' ? input : keptInput(scope, parts);
  const { normed } = normedOf(calls, input, parts, type, temporary, first.readsCodes, kept);
  const made = newMatrix(scope, rows, first.width, middle.typeOfMade(type));
  const firstState = first.forward(made, normed, null, scope, temporary);
  const { inner, state } = middle.forward(made, innerWidth, scope, temporary, last.readsCodes);
  const between = calls.as(type, inner, temporary);
  const lastState = last.forward(tight(to, rows, hidden), between, tight(x, rows, hidden), scope, temporary);
  temporary.end();
  return { scope, x: kept, made, middle: state, first: firstState, last: lastState };
}

export interface CardHalfGradients {
  readonly dx: DeviceBuffer;
  readonly gain: DeviceBuffer;
  readonly first: readonly LayerGradients[];
  readonly last: LayerGradients;
}

/** Takes ownership of the state. */
export function halfBackward(
  calls: MatrixCalls,
  gradients: CardHalfGradients,
  dy: DeviceBuffer,
  parts: HalfParts,
  state: CardHalfState,
  arithmetic: Arithmetic,
): void {
  const { rows, hidden, middle } = parts;
  const { memory } = calls;
  const pass: LinearPass = { arithmetic, isProbe: false, time: parts.time };
  const type = typeOf(arithmetic);
  // Large temporaries are released as soon as they have been read.
  const [temporary, upper, between] = [new Scope(memory), new Scope(memory), new Scope(memory)];
  const residual = memory.floats(dy, rows * hidden, 'half: dy');
  // Rounded when it was computed, or now.
  const upstream =
    type === 'float' ? tight(residual, rows, hidden) : calls.half(dy, rows, hidden, 'half: dy');

  const { first, last, innerWidth, isJoined } = groupsOf(calls, parts, pass);
  const dinner = newMatrix(upper, rows, innerWidth, state.made.type);
  const lastBack = last.inputGradient(dinner, upstream, state.last, temporary);
  const back = [state.made, dinner, state.middle, temporary, between, first.readsCodes] as const;
  const { dmade, inner } = middle.backward(...back);
  upper.end();
  const input = calls.as(type, inner, between);
  last.gradients([gradients.last], upstream, input, state.last, lastBack, temporary);
  between.end();

  const dpart = calls.as(type, dmade, temporary);
  const dn = isJoined
    ? newMatrix(temporary, rows, hidden, type)
    : tight(temporary.take(4 * rows * hidden), rows, hidden);
  const firstBack = first.inputGradient(dn, dpart, state.first, temporary);
  const { normed, rstd } = normedOf(calls, state.x!, parts, type, temporary, false);
  first.gradients(gradients.first, dpart, normed, state.first, firstBack, temporary);
  const into = normGradients(calls, gradients, parts, type, last.readsCodes);
  normBackward(calls, into, dn, state.x!, rstd, residual, normOf(calls, parts), temporary);
  temporary.end();
  state.scope.end();
}

function normedOf(
  calls: MatrixCalls,
  x: NormInput,
  parts: HalfParts,
  type: Matrix['type'],
  scope: Scope,
  withCodes: boolean,
  kept: NormInput | null = null,
) {
  const plain = newMatrix(scope, parts.rows, parts.hidden, type);
  const normed = withCodes && makesCodes(parts) ? { ...plain, codes: newQuantized(scope, plain) } : plain;
  const rstd = scope.take(4 * parts.rows);
  // Float32 input is not copied.
  normForward(calls, normed, rstd, x, normOf(calls, parts), kept?.type === 'bf16' ? kept : null);
  return { normed, rstd };
}

/** Also writes dx rounded for the preceding half, and in e4m3 if that half reads it. */
export function normGradients(
  calls: MatrixCalls,
  { dx, gain }: { readonly dx: DeviceBuffer; readonly gain: DeviceBuffer },
  { rows, hidden }: { readonly rows: number; readonly hidden: number },
  type: Matrix['type'],
  withCodes: boolean,
): NormGradients {
  return {
    dx: calls.memory.floats(dx, rows * hidden, 'norm: dx'),
    gain: calls.memory.floats(gain, hidden, 'norm: gradient of the gain'),
    rounded:
      type === 'bf16' && roundsGradient({ hidden }) ? calls.written(dx, rows, hidden, withCodes) : null,
  };
}

function groupsOf(calls: MatrixCalls, { first, last, hidden, middle }: HalfParts, pass: LinearPass) {
  const isJoined = JoinedLayers.canBe(first, pass) && JoinedLayers.canBe([last], pass);
  const innerWidth = middle.innerWidth(isJoined);
  return {
    ...{ isJoined, innerWidth },
    first: new LayerGroup(calls, first, hidden, pass, isJoined),
    last: new LayerGroup(calls, [last], innerWidth, pass, isJoined),
  };
}

function normOf(calls: MatrixCalls, { gain, epsilon, hidden, rows }: HalfParts) {
  return { rows, hidden, epsilon, gain: calls.memory.floats(gain, hidden, 'half: gain') };
}
