import type { DeviceBuffer, ForwardMode, Layer, LayerGradients } from '../device.js';
import { Scope } from './cardMemory.js';
import { JoinedLayers } from './joinedLayers.js';
import { LayerGroup, type GroupState } from './layerGroup.js';
import type { LinearPass } from './linear.js';
import { newMatrix, tight, typeOf, type Arithmetic, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import { makesCodes, normBackward, normForward, roundsGradient, type NormGradients } from './norm.js';
import { newQuantized } from './quantized.js';

/** A half of a block: x + last(middle(first(norm(x)))), with the layers of `first` beside each other. */
export interface HalfParts {
  readonly rows: number;
  /** Positions of a sequence. */
  readonly time: number;
  readonly hidden: number;
  readonly gain: DeviceBuffer;
  readonly epsilon: number;
  readonly first: readonly Layer[];
  readonly last: Layer;
  readonly middle: Middle;
}

/** Between the layers of a half: attention, or SwiGLU. */
export interface Middle {
  /** Columns of what goes into `last`: with zeros behind them where all layers of the half are joined. */
  innerWidth(isJoined: boolean): number;
  /** Of what the layers of `first` make, [rows, one after the other]. */
  typeOfMade(type: Matrix['type']): Matrix['type'];
  /** `kept`: of what the backward pass needs; `inner` may be among it or not. `withCodes`: it will be read in e4m3. */
  forward(
    made: Matrix,
    innerWidth: number,
    kept: Scope,
    temporary: Scope,
    withCodes: boolean,
  ): { inner: Matrix; state: MiddleState };
  /** dmade of dinner, zero between the layers, which may be read in e4m3; and what went into `last`, for its gradients. */
  backward(
    made: Matrix,
    dinner: Matrix,
    state: MiddleState,
    temporary: Scope,
    withCodes: boolean,
  ): { dmade: Matrix; inner: Matrix };
}

/** Of one half: attention's output and the logarithms of its sums; nothing of SwiGLU. */
export interface MiddleState {
  readonly mixed: Matrix;
  readonly logSumExp: number;
}

/** What the backward pass of a half needs. The norm of x is not among it: it is made again for less than it would hold. */
export interface CardHalfState {
  readonly scope: Scope;
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
  { precision }: Pick<ForwardMode, 'precision'>,
  run: Arithmetic,
): CardHalfState {
  const { rows, hidden, middle } = parts;
  const isProbe = precision === 'float32';
  const pass: LinearPass = { arithmetic: isProbe ? 'float32' : run, isProbe, time: parts.time };
  const type = typeOf(pass.arithmetic);
  const [scope, temporary] = [new Scope(calls.memory), new Scope(calls.memory)];
  const { first, last, innerWidth } = groupsOf(calls, parts, pass);
  const { normed } = normedOf(calls, x, parts, type, temporary, first.readsCodes);
  const made = newMatrix(scope, rows, first.width, middle.typeOfMade(type));
  const firstState = first.forward(made, normed, null, scope, temporary);
  const { inner, state } = middle.forward(made, innerWidth, scope, temporary, last.readsCodes);
  const input = calls.as(type, inner, temporary);
  const lastState = last.forward(tight(to, rows, hidden), input, tight(x, rows, hidden), scope, temporary);
  temporary.end();
  return { scope, made, middle: state, first: firstState, last: lastState };
}

export interface CardHalfGradients {
  readonly dx: DeviceBuffer;
  readonly gain: DeviceBuffer;
  readonly first: readonly LayerGradients[];
  readonly last: LayerGradients;
}

/** Takes over the state. */
export function halfBackward(
  calls: MatrixCalls,
  gradients: CardHalfGradients,
  dy: DeviceBuffer,
  x: number,
  parts: HalfParts,
  state: CardHalfState,
  arithmetic: Arithmetic,
): void {
  const { rows, hidden, middle } = parts;
  const { memory } = calls;
  const pass: LinearPass = { arithmetic, isProbe: false, time: parts.time };
  const type = typeOf(arithmetic);
  const temporary = new Scope(memory);
  const residual = memory.floats(dy, rows * hidden, 'half: dy');
  // Rounded by whoever made it, or now.
  const upstream =
    type === 'float' ? tight(residual, rows, hidden) : calls.half(dy, rows, hidden, 'half: dy');

  const { first, last, innerWidth, isJoined } = groupsOf(calls, parts, pass);
  const dinner = newMatrix(temporary, rows, innerWidth, state.made.type);
  const lastBack = last.inputGradient(dinner, upstream, state.last, temporary);
  const { dmade, inner } = middle.backward(state.made, dinner, state.middle, temporary, first.readsCodes);
  const input = calls.as(type, inner, temporary);
  last.gradients([gradients.last], upstream, input, state.last, lastBack, temporary);

  const dpart = calls.as(type, dmade, temporary);
  const dn = isJoined
    ? newMatrix(temporary, rows, hidden, type)
    : tight(temporary.take(4 * rows * hidden), rows, hidden);
  const firstBack = first.inputGradient(dn, dpart, state.first, temporary);
  const { normed, rstd } = normedOf(calls, x, parts, type, temporary, false);
  first.gradients(gradients.first, dpart, normed, state.first, firstBack, temporary);
  const into = normGradients(calls, gradients, parts, type, last.readsCodes);
  normBackward(calls, into, dn, x, rstd, residual, normOf(calls, parts), temporary);
  temporary.end();
  state.scope.end();
}

function normedOf(
  calls: MatrixCalls,
  x: number,
  parts: HalfParts,
  type: Matrix['type'],
  scope: Scope,
  withCodes: boolean,
) {
  const plain = newMatrix(scope, parts.rows, parts.hidden, type);
  const normed = withCodes && makesCodes(parts) ? { ...plain, codes: newQuantized(scope, plain) } : plain;
  const rstd = scope.take(4 * parts.rows);
  normForward(calls, normed, rstd, x, normOf(calls, parts));
  return { normed, rstd };
}

/** With dx rounded, too, for the half before, and in e4m3 where that reads it so. */
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
