import type * as api from '../device.js';
import { requireSameHead } from '../deviceFaults.js';
import type { CardResult } from './cardResult.js';
import { keptState, stateOf, type CardNormState } from './cardStates.js';
import { CardUpdates } from './cardUpdates.js';
import { embeddingBackward, embeddingForward } from './embedding.js';
import { normGradients } from './half.js';
import { headCrossEntropy, headLogits } from './head.js';
import { tight, typeOf, type Matrix } from './matrix.js';
import { keptInput, normBackward, normForward, type Norm, type NormInput } from './norm.js';
import { Scope } from './scope.js';

/** The ends of a pass: the embedding, the last norm, the head with its loss. */
export class CardEnds extends CardUpdates {
  embeddingForward(
    y: api.DeviceBuffer,
    table: api.DeviceBuffer,
    ids: Int32Array,
    shape: api.TableShape,
  ): void {
    const { rows, vocabulary, hidden } = shape;
    const from = this.floats(table, vocabulary * hidden, 'embeddingForward: table');
    embeddingForward(this.calls, this.floats(y, rows * hidden, 'embeddingForward: y'), from, ids, shape);
  }

  embeddingBackward(
    dtable: api.DeviceBuffer,
    dy: api.DeviceBuffer,
    ids: Int32Array,
    shape: api.TableShape,
    adds: boolean,
  ): void {
    const { rows, vocabulary, hidden } = shape;
    const to = this.floats(dtable, vocabulary * hidden, 'embeddingBackward: dtable');
    const from = this.floats(dy, rows * hidden, 'embeddingBackward: dy');
    if (!adds) this.zero(dtable);
    embeddingBackward(this.calls, to, from, ids, shape);
  }

  rmsNormForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    shape: api.NormShape,
    mode: Pick<api.ForwardMode, 'keepsState'>,
  ): api.HalfState | null {
    const { rows, hidden, epsilon } = shape;
    const to = tight(this.floats(y, rows * hidden, 'rmsNormForward: y'), rows, hidden);
    const from = this.floats(x, rows * hidden, 'rmsNormForward: x');
    const norm = { rows, hidden, epsilon, gain: this.floats(gain, hidden, 'rmsNormForward: gain') };
    const state = this.normForward(to, from, norm, mode.keepsState);
    if (mode.keepsState && state.x.type === 'bf16') this.takeOver(x);
    return keptState(state, mode);
  }

  rmsNormBackward(
    gradients: { readonly dx: api.DeviceBuffer; readonly gain: api.DeviceBuffer },
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    kept: api.HalfState | null,
    { rows, hidden, epsilon }: api.NormShape,
  ): void {
    const norm = { rows, hidden, epsilon, gain: this.floats(gain, hidden, 'rmsNormBackward: gain') };
    const withCodes = this.description.basePrecision === 'fp8';
    const into = normGradients(this.calls, gradients, norm, typeOf(this.arithmetic), withCodes);
    const upstream = tight(this.floats(dy, rows * hidden, 'rmsNormBackward: dy'), rows, hidden);
    const temporary = new Scope(this);
    const state = stateOf<CardNormState>(kept) ?? this.normAgain(x, norm, temporary);
    normBackward(this.calls, into, upstream, state.x, state.rstd, null, norm, temporary);
    temporary.end();
    state.scope.end();
  }

  headCrossEntropy(
    result: api.ResultBuffer,
    gradients: { readonly dx: api.DeviceBuffer; readonly head: api.DeviceBuffer } | null,
    pass: api.HeadPass,
  ): void {
    requireSameHead('cuda', pass);
    const { rows, vocabulary, hidden } = pass.shape;
    const into = gradients && {
      dx: this.floats(gradients.dx, rows * hidden, 'headCrossEntropy: dx'),
      head: this.floats(gradients.head, vocabulary * hidden, 'headCrossEntropy: dhead'),
    };
    headCrossEntropy(this.calls, result as CardResult, into, pass, this.arithmetic);
  }

  headLogits(
    logits: api.DeviceBuffer,
    pass: Pick<api.HeadPass, 'shape' | 'x' | 'head' | 'firstRow'>,
    precision: api.ForwardMode['precision'],
  ): void {
    const { rows, vocabulary } = pass.shape;
    const to = this.floats(logits, (rows - pass.firstRow) * vocabulary, 'headLogits: logits');
    headLogits(this.calls, to, pass, precision === 'float32' ? 'float32' : this.arithmetic);
  }

  private normForward(to: Matrix, x: number, norm: Norm, keepsInput: boolean): CardNormState {
    const scope = new Scope(this, 'pass');
    const rstd = scope.take(4 * norm.rows);
    const input: NormInput = { address: x, type: 'float' };
    const kept = keepsInput && this.arithmetic === 'bfloat16' ? keptInput(scope, norm) : null;
    normForward(this.calls, to, rstd, input, norm, kept);
    return { scope, x: kept ?? input, rstd };
  }

  private normAgain(x: api.DeviceBuffer, norm: Norm, temporary: Scope): CardNormState {
    const { rows, hidden } = norm;
    const to = tight(temporary.take(4 * rows * hidden), rows, hidden);
    return this.normForward(to, this.floats(x, rows * hidden, 'rmsNormBackward: x'), norm, true);
  }
}
