import { tmpdir } from 'node:os';
import { performance } from 'node:perf_hooks';
import { alone, Llama } from '../../engine/dist/index.js';
import { tensorsOf } from '../../engine/dist/exports/huggingFace.js';
import { writeSafetensors } from '../../engine/dist/io/safetensors.js';
import { adapterPlan } from '../../engine/dist/model/adapterSet.js';
import { chooseGraphs, defaultRunSpec } from '../../engine/dist/plan/index.js';
import { Optimizer } from '../../engine/dist/training/optimizer.js';
import { requireSameFunction } from '../../engine/dist/training/mergeDrift.js';
import { takeProbe } from '../../engine/dist/training/probe.js';
import { accumulateGradients, StepGradients } from '../../engine/dist/training/gradients.js';
import { peakResidentBytes } from './processMemory.mjs';

const optimizerSettings = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0, momentType: 'float32' };
const gradientNormMax = 1;

/**
 * Our side of a comparison: the same model, step and request names as the Trainer of pytorch.py. Rank 0 trains full-rank. Layers are
 * computed by the graphs that the planner chooses for a job of this shape, or by `graph`.
 */
export class Trainer {
  #model;
  #optimizer;
  #gradients;
  #result;
  #device;
  #settings;
  /** Of the adapter phase. */
  #spec = null;
  #stepCount = 0;
  #restartCount = 0;

  constructor(
    {
      config,
      rank,
      alpha,
      batch,
      microBatch = batch,
      graph = 'auto',
      learningRate = 1e-4,
      seed = 0,
      model,
      momentType = optimizerSettings.momentType,
      ...rest
    },
    device,
  ) {
    this.#settings = { config, batch, microBatch, graph, learningRate, seed, ...rest };
    this.#device = device;
    this.#optimizer = new Optimizer(device, { ...optimizerSettings, momentType });
    this.#gradients = new StepGradients(device);
    this.#result = device.newResult(0);
    this.#model = model ?? Llama.create(device, config, seed);
    if (rank > 0) this.attach({ rank, alpha });
  }

  get parameterCount() {
    return [...this.#model.parameters.values()].reduce((sum, { buffer }) => sum + buffer.length, 0);
  }

  /** Writes the weights of a full-rank model under Hugging Face's names, as the start of the other side. */
  async save({ path }) {
    const weight = (name) => this.#model.valuesOf(this.#model.parameters.get(name));
    await writeSafetensors(
      path,
      tensorsOf({ config: this.#model.config, weight, merged: weight }, 'F32', false),
    );
    return {};
  }

  /** Ends a warm start: the linear layers are frozen and get adapters. */
  attach({ rank, alpha }) {
    const { config, batch, time, microBatch, graph, seed } = this.#settings;
    const { description } = this.#device;
    const { precision, basePrecision } = description;
    const spec = defaultRunSpec({
      model: config,
      adapter: { rank, alpha, graph },
      batch: { sequenceCount: batch, sequenceLength: time, microBatchSequenceCount: microBatch },
      precision: basePrecision === precision ? precision : `${basePrecision}Base`,
    });
    const plan = adapterPlan(chooseGraphs(spec, description), tmpdir());
    this.#spec = spec;
    this.#gradients.dispose();
    this.#model.attachAdapters(spec.adapter, seed, this.#restartCount, plan);
    this.#optimizer.drop('base');
    return {};
  }

  /** Forward, backward, clipping, AdamW. If no tokens are given, they are generated before the clock starts. */
  async step(tokens = {}) {
    const given = tokens.inputs === undefined ? this.#madeUpTokens() : typedTokens(tokens);
    const start = performance.now();
    await this.queue(given, tokens.learningRate);
    const { loss } = await this.#device.readResult(this.#result);
    return { seconds: (performance.now() - start) / 1e3, loss, peakBytes: peakResidentBytes() };
  }

  /** Queues a step without reading its result. */
  async queue(tokens, learningRate = this.#settings.learningRate) {
    const { batch, microBatch, time, seed, recompute = false, headPrecision = 'same' } = this.#settings;
    const step = this.#stepCount++;
    const shape = {
      step,
      sequenceLength: time,
      microBatchSequenceCount: microBatch,
      maskDocuments: false,
      firstSequence: step * batch,
      dropoutVersion: 1,
      seed,
      recompute,
      headPrecision,
    };
    const means = {
      model: this.#model,
      gradients: this.#gradients,
      result: this.#result,
      collective: alone,
    };
    const gradients = await accumulateGradients(means, tokens, shape, new AbortController().signal);
    this.#device.sumSquares(this.#result, gradients.parts);
    this.#optimizer.apply(gradients, learningRate, { result: this.#result, normMax: gradientNormMax });
  }

  /** Merge, requantization and packing, fresh adapters, moments reset. */
  async merge() {
    const start = performance.now();
    await this.#mergeAndRestart();
    return { seconds: (performance.now() - start) / 1e3, peakBytes: peakResidentBytes() };
  }

  /**
   * A restart as `restart` of the engine makes it, but for the singular values: a merge between two probes of one sequence, which must
   * agree. The second probe reads what was packed, so that the time contains all that the device was given to do.
   */
  async restart(tokens) {
    const probed = {
      ...{ device: this.#device, model: this.#model, result: this.#result, spec: this.#spec },
      batches: { read: async () => typedTokens(tokens) },
    };
    await this.#device.readResult(this.#result); // the last update is not part of it
    const start = performance.now();
    this.#device.trim();
    const before = await takeProbe(probed);
    await this.#mergeAndRestart();
    const after = await takeProbe(probed);
    const { logitChangeMax } = requireSameFunction(probed, before, after);
    for (const { logits } of [before, after]) this.#device.discard(logits);
    this.#device.trim();
    return { seconds: (performance.now() - start) / 1e3, logitChangeMax };
  }

  async #mergeAndRestart() {
    await this.#model.mergeAdapters();
    this.#model.restartAdapters(this.#settings.seed, ++this.#restartCount);
    await this.#optimizer.forgetAdapters('zero', 0, () => 0);
  }

  /** Sum of the losses and the number of targets other than -1. */
  async evaluate({ inputs, targets }) {
    const { time } = this.#settings;
    const tokens = typedTokens({ inputs, targets });
    this.#device.clearResult(this.#result);
    this.#model.addLoss({ ...tokens, batch: inputs.length / time, time }, this.#result);
    const { lossSum: sum } = await this.#device.readResult(this.#result);
    return { sum, count: tokens.targets.filter((target) => target !== -1).length };
  }

  #madeUpTokens() {
    const { config, batch, time } = this.#settings;
    const tokens = Int32Array.from(
      { length: batch * time + 1 },
      (_, i) => (i * 7919 + ((i * i) % 613)) % config.vocabSize,
    );
    return { inputs: tokens.subarray(0, -1), targets: tokens.subarray(1) };
  }
}

function typedTokens({ inputs, targets }) {
  return { inputs: Int32Array.from(inputs), targets: Int32Array.from(targets) };
}
