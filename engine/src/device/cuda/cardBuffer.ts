import type { DeviceBuffer, ElementType } from '../device.js';
import type { Matrix } from './matrix.js';

/** Activations between halves are float32 here too: probes are then exact, and a step is hardly slower. */
export const elementBytes: Record<ElementType, number> = { float32: 4, activation: 4, int8: 1, uint8: 1 };

/** The bfloat16 copy of a parameter. */
export interface Half {
  readonly matrix: Matrix;
  /** The parameter was written since the copy was made. */
  isStale: boolean;
  /** The codes of the matrix are up to date too. */
  hasCodes: boolean;
  release(): void;
}

export class CardBuffer implements DeviceBuffer {
  half: Half | null = null;
  /** Address of the values while they are parked: pinned host memory. */
  host: number | null = null;
  /** Its memory was released: the state of a half contains everything that will still be read. */
  isTakenOver = false;

  constructor(
    readonly owner: object,
    /** Null once released, and while parked. */
    public address: number | null,
    readonly length: number,
    readonly type: ElementType,
    /** Start of the allocation that it is a part of; null if it is not part of one. */
    readonly whole: number | null,
  ) {}

  get isPart(): boolean {
    return this.whole !== null;
  }

  get bytes(): number {
    return this.length * elementBytes[this.type];
  }
}
