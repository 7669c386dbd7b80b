import { performance } from 'node:perf_hooks';
import { kernelCosts } from './kernelCosts.mjs';

/** From now on counts and times every call of the native addon. Only one per process: it replaces the addon's functions. */
export class Profile {
  #kernels = new Map();
  #bookkeepingSeconds = 0;

  constructor(addon) {
    const costs = kernelCosts({ ...addon });
    for (const [name, original] of Object.entries(addon)) {
      addon[name] = (...values) => {
        const called = performance.now();
        const cost = costs(name, values); // before the call, which may release its arguments
        const start = performance.now();
        const result = original(...values);
        const end = performance.now();
        this.#add(name, (end - start) / 1e3, cost);
        this.#bookkeepingSeconds += (start - called + performance.now() - end) / 1e3;
        return result;
      };
    }
  }

  /** Statistics since the last call: { kernels: { name: { calls, seconds, operations, bytes } }, bookkeepingSeconds }. */
  take() {
    const taken = {
      kernels: Object.fromEntries(this.#kernels),
      bookkeepingSeconds: this.#bookkeepingSeconds,
    };
    this.#kernels = new Map();
    this.#bookkeepingSeconds = 0;
    return taken;
  }

  #add(name, seconds, { operations, bytes }) {
    const kernel = this.#kernels.get(name) ?? { calls: 0, seconds: 0, operations: 0, bytes: 0 };
    kernel.calls++;
    kernel.seconds += seconds;
    kernel.operations += operations;
    kernel.bytes += bytes;
    this.#kernels.set(name, kernel);
  }
}
