import type { MlpHalf } from '../device.js';
import type { Scope } from './scope.js';
import type { HalfParts, Middle, MiddleState } from './half.js';
import { newMatrix, widthOf, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';
import { codesParameters, newQuantized } from './quantized.js';

/** A half with SwiGLU between its layers: gate and up are adjacent columns of one matrix. */
export function mlpParts(calls: MatrixCalls, half: MlpHalf): HalfParts {
  const { shape, gain, epsilon, gate, up, down } = half;
  const { batch, time, hidden, intermediate } = shape;
  const common = { rows: batch * time, time, hidden, gain, epsilon };
  return { ...common, first: [gate, up], last: down, middle: new SwiGlu(calls, intermediate) };
}

const nothing: MiddleState = {
  mixed: { address: 0, rows: 0, columns: 0, stride: 0, type: 'float' },
  logSumExp: 0,
  heads: null,
};

/** The input of `down` is not kept: the backward pass recomputes it. */
class SwiGlu implements Middle {
  constructor(
    private readonly calls: MatrixCalls,
    private readonly intermediate: number,
  ) {}

  /** Joined layers have zeros after their own columns, and SwiGLU of these is zero too. */
  innerWidth(isJoined: boolean): number {
    return isJoined ? widthOf(this.intermediate) : this.intermediate;
  }

  typeOfMade(type: Matrix['type']): Matrix['type'] {
    return type;
  }

  forward(
    made: Matrix,
    innerWidth: number,
    _kept: Scope,
    temporary: Scope,
    withCodes: boolean,
  ): { inner: Matrix; state: MiddleState } {
    const plain = newMatrix(temporary, made.rows, innerWidth, made.type);
    const ends = { h: plain.address, up_offset: made.columns / 2 };
    if (!withCodes) {
      this.launch('swiglu_forward', made, plain, ends);
      return { inner: plain, state: nothing };
    }
    const inner = { ...plain, codes: newQuantized(temporary, plain) };
    this.launch('swiglu_forward_codes', made, inner, { ...ends, ...codesParameters(inner.codes) });
    return { inner, state: nothing };
  }

  backward(
    made: Matrix,
    dinner: Matrix,
    _state: MiddleState,
    temporary: Scope,
    between: Scope,
    withCodes: boolean,
  ): { dmade: Matrix; inner: Matrix } {
    const inner = newMatrix(between, made.rows, dinner.columns, made.type);
    // Overwrites gate and up: each thread reads what it overwrites.
    const ends = { d_gate_up: made.address, h: inner.address, dh: dinner.address };
    if (!withCodes) {
      this.launch('swiglu_backward', made, inner, { ...ends, up_offset: made.columns / 2 });
      return { dmade: made, inner };
    }
    const dmade = { ...made, codes: newQuantized(temporary, made) };
    this.launch('swiglu_backward_codes', made, inner, { ...ends, ...codesParameters(dmade.codes) });
    return { dmade, inner };
  }

  private launch(kernel: string, made: Matrix, inner: Matrix, ends: Readonly<Record<string, number>>): void {
    // If codes are needed, a warp handles a whole row to find its largest value; otherwise a thread handles eight elements.
    const threads = made.rows * (kernel.endsWith('_codes') ? 32 : Math.ceil(inner.columns / 8));
    this.calls.launch(
      {
        ...{ file: 'swiglu', kernel, grid: [Math.ceil(threads / 256)] as const },
        parameters: {
          ...{ gate_up: made.address, rows: made.rows, width: inner.columns },
          ...{ h_stride: inner.stride, stride: made.stride, ...ends },
        },
      },
      made.type,
    );
  }
}
