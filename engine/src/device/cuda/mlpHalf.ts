import type { ForwardMode, MlpGradients, MlpHalf } from '../device.js';
import { Scope } from './cardMemory.js';
import { linearBackward, linearForward, type LinearPass, type LinearState } from './linear.js';
import {
  columnsOf,
  newMatrix,
  padded,
  tight,
  typeOf,
  type Arithmetic,
  type Matrix,
  type MatrixCalls,
} from './matrix.js';
import { normBackward, normForward } from './norm.js';

/** What the backward pass needs; what goes into `down` is made again. */
export interface MlpState {
  readonly scope: Scope;
  readonly rstd: number;
  readonly normed: Matrix;
  /** [rows, gate | up] */
  readonly gateUp: Matrix;
  readonly linear: Record<'gate' | 'up' | 'down', LinearState>;
}

export function mlpForward(
  calls: MatrixCalls,
  to: number,
  x: number,
  half: MlpHalf,
  { precision }: Pick<ForwardMode, 'precision'>,
  run: Arithmetic,
): MlpState {
  const { batch, time, hidden, intermediate } = half.shape;
  const rows = batch * time;
  const pass: LinearPass = {
    arithmetic: precision === 'float32' ? 'float32' : run,
    isProbe: precision === 'float32',
    time,
  };
  const type = typeOf(pass.arithmetic);
  const [scope, temporary] = [new Scope(calls.memory), new Scope(calls.memory)];
  const normed = newMatrix(scope, rows, hidden, type);
  const rstd = scope.take(4 * rows);
  normForward(calls, normed, rstd, x, normOf(calls, half, rows));
  const gateUp = newMatrix(scope, rows, 2 * padded(intermediate), type);
  const through = (name: 'gate' | 'up') => {
    const target = columnsOf(gateUp, name === 'up' ? padded(intermediate) : 0, intermediate);
    return linearForward(calls, target, normed, half[name], null, pass, scope, temporary);
  };
  const [gate, up] = [through('gate'), through('up')];
  const inner = newMatrix(temporary, rows, intermediate, type);
  calls.launch(
    {
      file: 'swiglu',
      kernel: 'swiglu_forward',
      grid: [Math.ceil((rows * Math.ceil(intermediate / 8)) / 256)],
      parameters: { ...shapeOf(gateUp, inner), h: inner.address },
    },
    type,
  );
  const residual = tight(x, rows, hidden);
  const down = linearForward(
    calls,
    tight(to, rows, hidden),
    inner,
    half.down,
    residual,
    pass,
    scope,
    temporary,
  );
  temporary.end();
  return { scope, rstd, normed, gateUp, linear: { gate, up, down } };
}

export function mlpBackward(
  calls: MatrixCalls,
  gradients: MlpGradients,
  dy: number,
  x: number,
  half: MlpHalf,
  { scope, rstd, normed, gateUp, linear }: MlpState,
  arithmetic: Arithmetic,
): void {
  const { batch, time, hidden, intermediate } = half.shape;
  const rows = batch * time;
  const { memory } = calls;
  const pass: LinearPass = { arithmetic, isProbe: false, time };
  const type = typeOf(arithmetic);
  const temporary = new Scope(memory);
  const upstream = calls.as(type, tight(dy, rows, hidden), temporary);
  // What went into `down`, for its gradients, before what comes out of it.
  const inner = newMatrix(temporary, rows, intermediate, type);
  const grid = [Math.ceil((rows * Math.ceil(intermediate / 8)) / 256)] as const;
  calls.launch(
    {
      file: 'swiglu',
      kernel: 'swiglu_forward',
      grid,
      parameters: { ...shapeOf(gateUp, inner), h: inner.address },
    },
    type,
  );
  const dinner = newMatrix(temporary, rows, intermediate, type);
  linearBackward(
    calls,
    dinner,
    false,
    gradients.down,
    upstream,
    inner,
    half.down,
    linear.down,
    pass,
    temporary,
  );
  const dGateUp = newMatrix(temporary, rows, gateUp.columns, type);
  calls.launch(
    {
      file: 'swiglu',
      kernel: 'swiglu_backward',
      grid,
      parameters: { ...shapeOf(gateUp, inner), d_gate_up: dGateUp.address, h: 0, dh: dinner.address },
    },
    type,
  );
  const dn = tight(temporary.take(4 * rows * hidden), rows, hidden);
  const back = (name: 'gate' | 'up', adds: boolean) => {
    const part = columnsOf(dGateUp, name === 'up' ? padded(intermediate) : 0, intermediate);
    linearBackward(calls, dn, adds, gradients[name], part, normed, half[name], linear[name], pass, temporary);
  };
  back('gate', false);
  back('up', true);
  const into = {
    dx: memory.floats(gradients.dx, rows * hidden, 'mlpHalfBackward: dx'),
    gain: memory.floats(gradients.gain, hidden, 'mlpHalfBackward: gain'),
  };
  normBackward(calls, into, dn, x, rstd, dy, normOf(calls, half, rows), temporary);
  temporary.end();
  scope.end();
}

function shapeOf(gateUp: Matrix, inner: Matrix) {
  return {
    ...{ gate_up: gateUp.address, rows: gateUp.rows, width: inner.columns },
    ...{ h_stride: inner.stride, stride: gateUp.stride, up_offset: gateUp.columns / 2 },
  };
}

function normOf(calls: MatrixCalls, { gain, epsilon, shape: { hidden } }: MlpHalf, rows: number) {
  return { rows, hidden, epsilon, gain: calls.memory.floats(gain, hidden, 'mlpHalf: gain') };
}
