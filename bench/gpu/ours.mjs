import { performance } from 'node:perf_hooks';
import { Llama } from '../../engine/dist/index.js';
import { cardBytes, cardMemory, defaultRunSpec, unmeasured } from '../../engine/dist/plan/index.js';
import { reserveMemory } from '../../engine/dist/training/reserveMemory.js';
import { Trainer } from '../sides/trainer.mjs';

/** Values that are repeated to fill a model's weights: drawing a billion would take longer than measuring. */
const pool = Float32Array.from({ length: 2 ** 20 + 7 }, (_, i) => 0.035 * Math.sin(i * 12.9898 + (i % 613)));

/** A model on an open card, and its steps. `close` releases everything, including the card. */
export class Ours {
  #trainer;
  #device;
  #text;
  #side;
  #step = 0;

  static async open(device, text, side) {
    const { config, rank } = side;
    try {
      const model = await Llama.fromWeights(device, config, async (weight) => weightOf(weight));
      const trainer = new Trainer({ alpha: rank, learningRate: 1e-4, ...side, model }, device);
      return new Ours(device, text, side, trainer);
    } catch (error) {
      device.close(); // otherwise the card would have less memory for all that follows
      throw error;
    }
  }

  constructor(device, text, side, trainer) {
    this.#device = device;
    this.#text = text;
    this.#side = side;
    this.#trainer = trainer;
  }

  get device() {
    return this.#device;
  }

  /** Seconds of each of `count` steps, from ids to loss. */
  async steps(count) {
    const { batch, time } = this.#side;
    const seconds = [];
    let loss;
    for (let i = 0; i < count; i++) {
      const tokens = this.#text.batchOf(this.#step++, batch, time);
      const begin = performance.now();
      ({ loss } = await this.#trainer.step(tokens));
      seconds.push((performance.now() - begin) / 1e3);
    }
    return { seconds, loss };
  }

  /** Seconds of a step that was captured and is replayed back to back without the host. */
  async replayed(count) {
    const { batch, time } = this.#side;
    const { card } = this.#device;
    const tokens = this.#text.batchOf(this.#step++, batch, time);
    this.#device.forgetRepeats();
    card.beginCapture();
    let graph;
    try {
      await this.#trainer.queue(tokens);
    } finally {
      graph = card.endCapture();
    }
    card.runGraph(graph);
    await card.wait();
    const begin = performance.now();
    for (let i = 0; i < count; i++) card.runGraph(graph);
    await card.wait();
    const seconds = (performance.now() - begin) / 1e3 / count;
    card.releaseGraph(graph);
    return seconds;
  }

  /** Seconds of a restart that is checked: probes, merge, pack and fresh adapters. */
  async restart() {
    return (await this.#trainer.restart(this.#text.batchOf(this.#step++, 1, this.#side.time))).seconds;
  }

  get peakBytes() {
    return this.#device.card.memory().peakBytes;
  }

  close() {
    this.#device.close();
  }
}

/**
 * Reserves the memory of such steps before the first one, as a job does; returns the planned bytes.
 * @param {import('../../engine/dist/device/device.js').Device} device
 * @param {Record<string, any>} side
 */
export function reservePlan(
  device,
  { config, rank, batch, time, graph, microBatch = batch, recompute, momentType },
) {
  const spec = defaultRunSpec({
    ...{ kind: 'lora', precision: 'bfloat16', device: 'cuda', model: config },
    adapter: { rank, graph },
    batch: { sequenceLength: time, sequenceCount: batch, microBatchSequenceCount: microBatch },
    recomputation: recompute ? 'blocks' : 'none',
    optimizer: { momentType: momentType ?? 'float32' },
  });
  reserveMemory(spec, device);
  return cardBytes(cardMemory(spec, unmeasured(device.description)));
}

function weightOf({ name, shape }) {
  const values = new Float32Array(shape.reduce((product, size) => product * size, 1));
  if (name.includes('norm')) return values.fill(1);
  for (let at = 0; at < values.length; at += pool.length)
    values.set(pool.subarray(0, Math.min(pool.length, values.length - at)), at);
  return values;
}
