import type { Documents } from './device.js';
import { checkDocuments } from './documentRows.js';

/** Documents of devices that compute where JavaScript lives. */
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

/** Null where documents see each other. */
export function beginsOf(documents: Documents | null): Int32Array | null {
  return documents && (documents as HostDocuments).begins;
}
