import type { Documents } from './device.js';
import { checkDocuments } from './documentRows.js';

/** Documents of devices that compute in JavaScript's memory. */
export class HostDocuments implements Documents {
  readonly rowCount: number;

  constructor(
    readonly begins: Int32Array,
    time: number,
  ) {
    checkDocuments(begins, time);
    this.rowCount = begins.length;
  }
}

/** Null if documents attend to each other. */
export function beginsOf(documents: Documents | null): Int32Array | null {
  return documents && (documents as HostDocuments).begins;
}
