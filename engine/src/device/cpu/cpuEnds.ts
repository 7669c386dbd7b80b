import type * as api from '../device.js';
import type { HostResult } from '../hostResult.js';
import { multiply } from './layerByItself.js';
import { CpuBases } from './cpuBases.js';
import { asState, stateOf } from './cpuStates.js';

/** The ends of a pass: the embedding, the last norm, the head with its loss. */
export class CpuEnds extends CpuBases {
  embeddingForward(
    y: api.DeviceBuffer,
    table: api.DeviceBuffer,
    ids: Int32Array,
    { rows, vocabulary, hidden }: api.TableShape,
  ): void {
    this.addon.embeddingForward(this.floats(y), this.floats(table), ids, rows, vocabulary, hidden);
  }

  embeddingBackward(
    dtable: api.DeviceBuffer,
    dy: api.DeviceBuffer,
    ids: Int32Array,
    { rows, vocabulary, hidden }: api.TableShape,
    adds: boolean,
  ): void {
    const target = adds ? this.take(vocabulary * hidden) : this.floats(dtable);
    this.addon.embeddingBackward(target, this.floats(dy), ids, rows, vocabulary, hidden);
    if (!adds) return;
    this.addon.addInPlace(this.floats(dtable), target);
    this.give(target);
  }

  rmsNormForward(
    y: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    { rows, hidden, epsilon }: api.NormShape,
    { keepsState }: Pick<api.ForwardMode, 'keepsState'>,
  ): api.HalfState | null {
    const rstd = this.take(rows);
    this.addon.rmsNormForward(this.floats(y), rstd, this.floats(x), this.floats(gain), rows, hidden, epsilon);
    if (keepsState) return asState({ rstd });
    this.give(rstd);
    return null;
  }

  rmsNormBackward(
    { dx, gain: dgain }: { dx: api.DeviceBuffer; gain: api.DeviceBuffer },
    dy: api.DeviceBuffer,
    x: api.DeviceBuffer,
    gain: api.DeviceBuffer,
    kept: api.HalfState | null,
    shape: api.NormShape,
  ): void {
    let rstd: Float32Array;
    if (kept !== null) rstd = (stateOf(kept) as { rstd: Float32Array }).rstd;
    else {
      const y = this.alloc(x.length, 'activation');
      rstd = (
        stateOf(this.rmsNormForward(y, x, gain, shape, { keepsState: true })!) as { rstd: Float32Array }
      ).rstd;
      this.release(y);
    }
    this.addon.rmsNormBackward(
      this.floats(dx),
      this.floats(dgain),
      this.floats(dy),
      this.floats(x),
      this.floats(gain),
      rstd,
      shape.rows,
      shape.hidden,
    );
    this.give(rstd);
  }

  headCrossEntropy(
    result: api.ResultBuffer,
    gradients: { dx: api.DeviceBuffer; head: api.DeviceBuffer } | null,
    { shape, x, head, targets, scale, firstRow, precision }: api.HeadPass,
  ): void {
    const losses = new Float32Array(shape.rows);
    this.addon.headCrossEntropy(
      losses,
      gradients && this.floats(gradients.dx),
      gradients && this.floats(gradients.head),
      this.floats(x),
      this.floats(head),
      targets,
      { ...shape, gradientScale: scale, inInt8: precision === 'int8' },
      this.precision,
    );
    let sum = 0;
    for (const loss of losses) sum += loss;
    (result as HostResult).addLosses({ losses, sum, scale, firstRow });
  }

  headLogits(
    logits: api.DeviceBuffer,
    { shape, x, head, firstRow }: Pick<api.HeadPass, 'shape' | 'x' | 'head' | 'firstRow'>,
    precision: api.ForwardMode['precision'],
  ): void {
    const { rows, vocabulary, hidden } = shape;
    multiply(
      this,
      this.floats(logits),
      this.floats(x).subarray(firstRow * hidden),
      this.floats(head),
      [rows - firstRow, vocabulary, hidden],
      precision === 'float32' ? 'float32' : this.precision,
      { transposeB: true },
    );
  }
}
