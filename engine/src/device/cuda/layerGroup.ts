import type { Layer, LayerGradients } from '../device.js';
import type { Scope } from './scope.js';
import { JoinedLayers } from './joinedLayers.js';
import {
  linearForward,
  linearGradients,
  linearInputGradient,
  type LinearBack,
  type LinearPass,
  type LinearState,
} from './linear.js';
import { columnsOf, widthOf, type Matrix } from './matrix.js';
import type { MatrixCalls } from './matrixCalls.js';

/** What each layer keeps for its backward pass; empty if they are one product. */
export type GroupState = readonly LinearState[];

/** Layers with the same input: one product if possible, otherwise one after another. Their outputs are adjacent columns. */
export class LayerGroup {
  private readonly joined: JoinedLayers | null;

  constructor(
    private readonly calls: MatrixCalls,
    private readonly layers: readonly Layer[],
    inputWidth: number,
    private readonly pass: LinearPass,
    isJoined: boolean,
  ) {
    this.joined = isJoined ? JoinedLayers.of(calls, layers, inputWidth) : null;
  }

  get readsCodes(): boolean {
    return this.joined?.readsCodes ?? false;
  }

  /** Total columns of the outputs; padding between layers is zero, or is not read. */
  get width(): number {
    return this.layers.reduce((sum, { outFeatures }) => sum + widthOf(outFeatures), 0);
  }

  /** Computes the layers of x, plus addend, into `to`: [rows, width], or the columns of a single layer. */
  forward(to: Matrix, x: Matrix, addend: Matrix | null, kept: Scope, temporary: Scope): GroupState {
    if (this.joined !== null) {
      this.joined.forward(to, x, addend);
      return [];
    }
    return this.layers.map((layer, i) =>
      linearForward(
        this.calls,
        this.partOf(to, i),
        this.inputOf(x, i),
        layer,
        addend,
        this.pass,
        kept,
        temporary,
      ),
    );
  }

  inputGradient(dx: Matrix, dy: Matrix, state: GroupState, temporary: Scope): readonly LinearBack[] {
    if (this.joined !== null) {
      this.joined.inputGradient(dx, dy);
      return [];
    }
    return this.layers.map((layer, i) => {
      const part = this.partOf(dy, i);
      return linearInputGradient(
        this.calls,
        this.inputOf(dx, i),
        i > 0,
        part,
        layer,
        state[i]!,
        this.pass,
        temporary,
      );
    });
  }

  gradients(
    into: readonly LayerGradients[],
    dy: Matrix,
    x: Matrix,
    state: GroupState,
    back: readonly LinearBack[],
    temporary: Scope,
  ): void {
    if (this.joined !== null) return this.joined.gradients(into, dy, x);
    this.layers.forEach((layer, i) => {
      const [part, input] = [this.partOf(dy, i), this.inputOf(x, i)];
      linearGradients(this.calls, into[i]!, part, input, layer, state[i]!, back[i]!, this.pass, temporary);
    });
  }

  private partOf(all: Matrix, i: number): Matrix {
    const before = this.layers.slice(0, i).reduce((sum, { outFeatures }) => sum + widthOf(outFeatures), 0);
    return columnsOf(all, before, this.layers[i]!.outFeatures);
  }

  /** Without the zero padding. */
  private inputOf(x: Matrix, i: number): Matrix {
    return { ...x, columns: this.layers[i]!.inFeatures };
  }
}
