import type * as api from '../device.js';
import type { CardMemory } from './cardMemory.js';

/** For all tables: more than a run needs. If it is full, all tables are written again. */
const tableBytes = 2 ** 20;

/** Tables on the card of the parameters that updates change: they are the same at every step, so each is uploaded once. */
export class MemberTables {
  private readonly tables = new Map<string, number>();
  private begin = 0;
  private place = 0;

  constructor(private readonly memory: CardMemory) {}

  /** Allocates memory for the tables. */
  prepare(): void {
    if (this.begin === 0) this.begin = this.place = this.memory.card.allocate(tableBytes);
  }

  /** The address of a table with these words. */
  of(words: readonly number[]): number {
    const key = words.join(' ');
    const known = this.tables.get(key);
    if (known !== undefined) return known;
    this.prepare();
    const bytes = 8 * words.length;
    if (this.place + bytes > this.begin + tableBytes) {
      // Launches before this one have read theirs by the time it is overwritten.
      this.tables.clear();
      this.place = this.begin;
      if (bytes > tableBytes)
        throw new RangeError(`A table of ${words.length} words for parameters of one shape`);
    }
    const address = this.place;
    this.memory.card.upload(address, BigUint64Array.from(words, BigInt));
    this.place += bytes;
    this.tables.set(key, address);
    return address;
  }

  /** Words of a moment as in struct Member of moments.h: values or codes, and scales. */
  momentWords(
    moment: api.Moment,
    length: number,
    type: 'int8' | 'uint8',
    isCoded: boolean,
    name: string,
  ): [number, number] {
    const { memory } = this;
    if ('codes' in moment !== isCoded)
      throw new TypeError(`${name}: the moments of one group must all be float32 or all be coded`);
    if (!('codes' in moment)) return [memory.floats(moment, length, name), 0];
    const scales = memory.floats(moment.scales, Math.ceil(length / 256), `${name} scales`);
    return [memory.codes(moment.codes, length, type, name), scales];
  }

  /** Where the update of a parameter writes the copy that products read; zeros if it does not. */
  roundedWords(parameter: api.DeviceBuffer, columns: number): [address: number, stride: number] {
    const rounded = this.rounds(parameter, columns) ? this.memory.halfOf(parameter)!.matrix : null;
    return [rounded?.address ?? 0, rounded?.stride ?? 0];
  }

  /** Copies written by the update are up to date; others become stale and are rounded on next use. */
  updated(parameter: api.DeviceBuffer, columns: number): void {
    if (!this.rounds(parameter, columns)) this.memory.written(parameter);
  }

  /** Whether the update also writes the rounded copy: if that copy is up to date and its rows match the parameter's. */
  private rounds(parameter: api.DeviceBuffer, columns: number): boolean {
    const half = this.memory.halfOf(parameter);
    return half !== null && !half.isStale && half.matrix.columns === columns;
  }
}
