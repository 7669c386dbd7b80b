import { performance } from 'node:perf_hooks';
import { peakResidentBytes, restartPeak } from './processMemory.mjs';

/** Only the loss over a vocabulary with both gradients: a `step` is one forward and backward pass. */
export class HeadCase {
  #run;
  #restingBytes;

  constructor(addon, { rows, dim, vocabulary, precision }) {
    // Initialized, so that their pages are resident before the first pass and later growth is scratch memory.
    const filled = (length, value) => new Float32Array(length).fill(value);
    const [losses, dx, dhead] = [rows, rows * dim, vocabulary * dim].map((length) => filled(length, 0.01));
    const [x, head] = [rows * dim, vocabulary * dim].map((length) => filled(length, 0.02));
    const targets = Int32Array.from({ length: rows }, (_, i) => (i * 7919) % vocabulary);
    const shape = { rows, hidden: dim, vocabulary, gradientScale: 1 / rows, inInt8: false };
    this.#run = () => addon.headCrossEntropy(losses, dx, dhead, x, head, targets, shape, precision);
    this.#restingBytes = restartPeak();
  }

  step() {
    const start = performance.now();
    this.#run();
    const seconds = (performance.now() - start) / 1e3;
    const peakBytes = peakResidentBytes();
    return { seconds, peakBytes, scratchBytes: peakBytes - this.#restingBytes };
  }
}
