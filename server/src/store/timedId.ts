import { randomBytes } from 'node:crypto';

/** An id that sorts by time, unique in practice: prefix, milliseconds in base 36, 40 random bits. Only `a-z 0-9 -`. */
export function timedId(prefix: string, timeMs: number): string {
  return `${prefix}-${timeMs.toString(36).padStart(9, '0')}-${randomBytes(5).toString('hex')}`;
}
