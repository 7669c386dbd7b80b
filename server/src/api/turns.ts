import { setImmediate } from 'node:timers/promises';

/** Longest stretch of work before other calls get their turn. */
const stretchMs = 5;

/** Divides long work, so that other calls get their turn every few milliseconds. */
export class Turns {
  private began = performance.now();

  /** Call this between short pieces of work. */
  async next(): Promise<void> {
    if (performance.now() - this.began < stretchMs) return;
    await setImmediate();
    this.began = performance.now();
  }
}
