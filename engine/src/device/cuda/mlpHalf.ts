import type { MlpHalf } from '../device.js';
import type { Scope } from './cardMemory.js';
import type { HalfParts, Middle, MiddleState } from './half.js';
import { newMatrix, widthOf, type Matrix, type MatrixCalls } from './matrix.js';

/** A half with SwiGLU between its layers: gate and up stand beside each other. */
export function mlpParts(calls: MatrixCalls, half: MlpHalf): HalfParts {
  const { shape, gain, epsilon, gate, up, down } = half;
  const { batch, time, hidden, intermediate } = shape;
  const common = { rows: batch * time, time, hidden, gain, epsilon };
  return { ...common, first: [gate, up], last: down, middle: new SwiGlu(calls, intermediate) };
}

const nothing: MiddleState = {
  mixed: { address: 0, rows: 0, columns: 0, stride: 0, type: 'float' },
  logSumExp: 0,
};

/** What goes into `down` is not kept: the backward pass makes it again. */
class SwiGlu implements Middle {
  constructor(
    private readonly calls: MatrixCalls,
    private readonly intermediate: number,
  ) {}

  /** Behind the layers' own columns joined ones make zeros, and so does this of them. */
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
  ): { inner: Matrix; state: MiddleState } {
    const inner = newMatrix(temporary, made.rows, innerWidth, made.type);
    this.launch('swiglu_forward', made, inner, { h: inner.address });
    return { inner, state: nothing };
  }

  backward(
    made: Matrix,
    dinner: Matrix,
    _state: MiddleState,
    temporary: Scope,
  ): { dmade: Matrix; inner: Matrix } {
    const inner = newMatrix(temporary, made.rows, dinner.columns, made.type);
    const dmade = newMatrix(temporary, made.rows, made.columns, made.type);
    this.launch('swiglu_backward', made, inner, {
      ...{ d_gate_up: dmade.address, h: inner.address, dh: dinner.address },
    });
    return { dmade, inner };
  }

  private launch(kernel: string, made: Matrix, inner: Matrix, ends: Readonly<Record<string, number>>): void {
    this.calls.launch(
      {
        ...{
          file: 'swiglu',
          kernel,
          grid: [Math.ceil((made.rows * Math.ceil(inner.columns / 8)) / 256)] as const,
        },
        parameters: {
          ...{ gate_up: made.address, rows: made.rows, width: inner.columns },
          ...{ h_stride: inner.stride, stride: made.stride, up_offset: made.columns / 2, ...ends },
        },
      },
      made.type,
    );
  }
}
