import { setImmediate } from 'node:timers/promises';

/** Work in one stretch before the calls of others have their turn. */
const stretchMs = 5;

/** Divides long work: others have their turn whenever it has taken a while. */
export class Turns {
  private began = performance.now();

  /** Between two pieces of work, each of them short. */
  async next(): Promise<void> {
    if (performance.now() - this.began < stretchMs) return;
    await setImmediate();
    this.began = performance.now();
  }
}
