import type { DeviceBuffer, ElementType } from '../device.js';
import type { Matrix } from './matrix.js';

/** What flows between the halves is float32 here too: what a probe computes from it is exact, and it costs a step little. */
export const elementBytes: Record<ElementType, number> = { float32: 4, activation: 4, int8: 1, uint8: 1 };

/** The bfloat16 of a parameter, beside it. */
export interface Half {
  readonly matrix: Matrix;
  /** The parameter was written since. */
  isStale: boolean;
  /** The codes of the matrix are of these values, too. */
  hasCodes: boolean;
  release(): void;
}

export class CardBuffer implements DeviceBuffer {
  half: Half | null = null;
  /** Where its values lie while they are parked: pinned memory of the host. */
  host: number | null = null;
  /** Its memory is gone: the state of a half holds what will be read of it. */
  isTakenOver = false;

  constructor(
    readonly owner: object,
    /** Null once it was given back, and while it is parked. */
    public address: number | null,
    readonly length: number,
    readonly type: ElementType,
    /** Where the allocation begins that it is a part of; null where it is none. */
    readonly whole: number | null,
  ) {}

  get isPart(): boolean {
    return this.whole !== null;
  }

  get bytes(): number {
    return this.length * elementBytes[this.type];
  }
}
