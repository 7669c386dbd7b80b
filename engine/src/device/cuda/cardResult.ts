import type { ResultBuffer, StepResult } from '../device.js';
import type { CardMemory } from './cardMemory.js';
import { Scope } from './scope.js';
import type { MatrixCalls } from './matrixCalls.js';

const headerBytes = 24;

/** [loss, sum of losses, squared norm] in float64, followed by one float32 per row: read by one copy. */
export class CardResult implements ResultBuffer {
  private readonly scope: Scope;
  /** Address for kernels. */
  readonly address: number;

  constructor(
    private readonly memory: CardMemory,
    readonly rowCount: number,
  ) {
    this.scope = new Scope(memory);
    this.address = this.scope.take(headerBytes + 4 * rowCount);
    this.clear();
  }

  clear(): void {
    this.memory.card.fill(this.address, 0, headerBytes + 4 * this.rowCount);
  }

  addLosses(calls: MatrixCalls, losses: number, count: number, scale: number, firstRow: number): void {
    const keptCount = Math.max(0, Math.min(count, this.rowCount - firstRow));
    calls.launch(
      {
        file: 'head',
        kernel: 'add_losses',
        grid: [1],
        parameters: {
          ...{
            result: this.address,
            kept: this.address + headerBytes + 4 * Math.min(firstRow, this.rowCount),
          },
          ...{ losses, count, kept_count: keptCount, scale },
        },
      },
      'float',
    );
  }

  addSquares(calls: MatrixCalls, values: number, length: number): void {
    if (length === 0) return;
    const count = Math.ceil(length / 8192);
    const scope = new Scope(this.memory);
    const partial = scope.take(8 * count);
    const launch = (kernel: string, blocks: number, parameters: Readonly<Record<string, number>>) =>
      calls.launch({ file: 'sums', kernel, grid: [blocks], parameters }, 'float');
    launch('sum_squares', count, { partial, x: values, length });
    launch('add_partials', 1, { total: this.address + 16, partial, count });
    scope.end();
  }

  async read(): Promise<StepResult> {
    const bytes = new Uint8Array(headerBytes + 4 * this.rowCount);
    await this.memory.card.downloadLater(bytes, this.address);
    const [loss, lossSum, squaredNorm] = new Float64Array(bytes.buffer, 0, 3) as unknown as [
      number,
      number,
      number,
    ];
    return { loss, lossSum, squaredNorm, rowLosses: new Float32Array(bytes.buffer, headerBytes) };
  }

  write({ loss, lossSum, rowLosses }: Omit<StepResult, 'squaredNorm'>): void {
    this.memory.card.upload(this.address, Float64Array.of(loss, lossSum));
    if (rowLosses.length > 0) this.memory.card.upload(this.address + headerBytes, rowLosses);
  }

  release(): void {
    this.scope.end();
  }
}
