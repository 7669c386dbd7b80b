import type * as api from '../device.js';
import type { CardMemory } from './cardMemory.js';
import type { CardResult } from './cardResult.js';
import type { MatrixCalls } from './matrixCalls.js';

/** Of all tables: more than a run has. When it is full, all are written again. */
const tableBytes = 2 ** 20;

/** Updates of parameters, all of one shape in one launch, which finds them by a table on the card. */
export class AdamWCalls {
  private readonly tables = new Map<string, number>();
  private begin = 0;
  private place = 0;

  constructor(
    private readonly calls: MatrixCalls,
    private readonly memory: CardMemory,
  ) {}

  /** Has room for the tables. */
  prepare(): void {
    if (this.begin === 0) this.begin = this.place = this.memory.card.allocate(tableBytes);
  }

  update({ shape, members }: api.ParameterGroup, options: api.AdamWOptions): void {
    if (members.length === 0) return;
    const { memory } = this;
    const length = members[0]!.parameter.length;
    const scales = Math.ceil(length / 256);
    const isCoded = 'codes' in members[0]!.first;
    // Rows of a parameter lie in what is rounded as in the parameter, or further apart.
    const columns = shape.at(-1) ?? 1;
    const words = members.flatMap((member) => this.wordsOf(member, length, columns, isCoded));
    this.calls.launch({
      file: 'adamw',
      kernel: isCoded ? 'coded_adamw' : 'adamw',
      grid: [scales, members.length],
      parameters: {
        ...{ members: this.tableOf(words), result: (options.clip.result as CardResult).address },
        ...{ length, columns, norm_max: options.clip.normMax },
        ...{
          learning_rate: options.learningRate,
          epsilon: options.epsilon,
          weight_decay: options.weightDecay,
        },
        ...{ beta1: options.beta1, rest1: 1 - options.beta1, beta2: options.beta2, rest2: 1 - options.beta2 },
        ...{ inverse1: 1 / options.correction1, inverse2: 1 / options.correction2 },
      },
    });
    // What was rounded by it is as true as before; what was not is rounded when it is used.
    for (const { parameter } of members) if (!this.rounds(parameter, columns)) memory.written(parameter);
  }

  private wordsOf(
    { parameter, gradient, first, second }: api.ParameterGroup['members'][number],
    length: number,
    columns: number,
    isCoded: boolean,
  ): number[] {
    const { memory } = this;
    const moment = (of: api.Moment, type: 'int8' | 'uint8', name: string): [number, number] => {
      if ('codes' in of !== isCoded)
        throw new TypeError('adamW: the moments of one group must all be float32 or all be coded');
      if (!('codes' in of)) return [memory.floats(of, length, `adamW: ${name}`), 0];
      const scales = memory.floats(of.scales, Math.ceil(length / 256), `adamW: ${name} scales`);
      return [memory.codes(of.codes, length, type, `adamW: ${name}`), scales];
    };
    const rounded = this.rounds(parameter, columns) ? memory.halfOf(parameter)!.matrix : null;
    // As struct Member of adamw.cu.
    return [
      memory.floats(parameter, length, 'adamW: parameter'),
      memory.floats(gradient, length, 'adamW: gradient'),
      ...moment(first, 'int8', 'first'),
      ...moment(second, 'uint8', 'second'),
      ...[rounded?.address ?? 0, rounded?.stride ?? 0],
    ];
  }

  /** Whether the update rounds what it writes: where all of it is rounded already, and lies in rows like the parameter's. */
  private rounds(parameter: api.DeviceBuffer, columns: number): boolean {
    const half = this.memory.halfOf(parameter);
    return half !== null && !half.isStale && half.matrix.columns === columns;
  }

  /** The same parameters are updated at every step: their table is uploaded once. */
  private tableOf(words: readonly number[]): number {
    const key = words.join(' ');
    const known = this.tables.get(key);
    if (known !== undefined) return known;
    this.prepare();
    const bytes = 8 * words.length;
    if (this.place + bytes > this.begin + tableBytes) {
      // Launches before this one have read theirs when it is overwritten.
      this.tables.clear();
      this.place = this.begin;
      if (bytes > tableBytes) throw new RangeError(`adamW: ${words.length / 8} parameters of one shape`);
    }
    const address = this.place;
    this.memory.card.upload(address, BigUint64Array.from(words, BigInt));
    this.place += bytes;
    this.tables.set(key, address);
    return address;
  }
}
