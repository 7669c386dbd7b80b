import type * as api from '../device.js';
import { AdamWCalls } from './adamW.js';
import { apolloMini } from './apolloMini.js';
import type { BlasProducts } from './blasProducts.js';
import { CardBases } from './cardBases.js';
import { CardResult } from './cardResult.js';
import type { Card } from './cudaAddon.js';
import type { Kernels } from './kernels.js';
import { MatrixUpdates } from './matrixUpdates.js';
import { MemberTables } from './memberTables.js';

/** The results of a step, and the updates of parameters. */
export class CardUpdates extends CardBases implements api.UpdateCalls {
  private readonly tables = new MemberTables(this);
  private readonly adamWCalls: AdamWCalls;
  private readonly matrixUpdates: MatrixUpdates;

  constructor(
    description: api.DeviceDescription,
    card: Card,
    protected readonly kernels: Kernels,
    blas: BlasProducts | null,
    isApart: boolean,
  ) {
    super(description, card, kernels, blas, isApart);
    this.adamWCalls = new AdamWCalls(this.calls, this, this.tables);
    this.matrixUpdates = new MatrixUpdates(this.calls, this, this.tables, description.precision);
  }

  override reserve(bytes: number): number | null {
    const lacking = super.reserve(bytes);
    if (lacking === null) {
      this.tables.prepare();
      this.calls.places.prepare();
    }
    return lacking;
  }

  newResult(rowCount: number): api.ResultBuffer {
    return new CardResult(this, rowCount);
  }

  clearResult(result: api.ResultBuffer): void {
    (result as CardResult).clear();
  }

  readResult(result: api.ResultBuffer): Promise<api.StepResult> {
    return (result as CardResult).read();
  }

  writeLosses(result: api.ResultBuffer, losses: Omit<api.StepResult, 'squaredNorm'>): void {
    (result as CardResult).write(losses);
  }

  releaseResult(result: api.ResultBuffer): void {
    (result as CardResult).release();
  }

  addInPlace(accumulator: api.DeviceBuffer, x: api.DeviceBuffer): void {
    const { length } = accumulator;
    const [to, from] = [
      this.floats(accumulator, length, 'addInPlace'),
      this.floats(x, length, 'addInPlace: x'),
    ];
    this.elementwise('add_in_place', length, { accumulator: to, x: from, length });
    this.written(accumulator);
  }

  scaleInPlace(values: api.DeviceBuffer, factor: number): void {
    const { length } = values;
    this.elementwise('scale_in_place', length, {
      values: this.floats(values, length, 'scaleInPlace'),
      length,
      factor,
    });
    this.written(values);
  }

  sumSquares(result: api.ResultBuffer, buffers: readonly api.DeviceBuffer[]): void {
    for (const { address, length } of this.spansOf(buffers, 'sumSquares'))
      (result as CardResult).addSquares(this.calls, address, length);
  }

  adamW(group: api.ParameterGroup, options: api.AdamWOptions): void {
    this.adamWCalls.update(group, options);
  }

  muon(group: api.MatrixGroup, options: api.MuonOptions): void {
    this.matrixUpdates.muon(group, options);
  }

  loraMuon(group: api.AdapterGroup, options: api.LoraMuonOptions): void {
    this.matrixUpdates.loraMuon(group, options);
  }

  apolloMini(group: api.ShadowGroup, options: api.AdamWOptions): void {
    apolloMini(this.calls, this, this.tables, group, options);
  }

  private elementwise(kernel: string, length: number, parameters: Readonly<Record<string, number>>): void {
    this.calls.launch({ file: 'elementwise', kernel, grid: [Math.ceil(length / 256)], parameters }, 'float');
  }
}
