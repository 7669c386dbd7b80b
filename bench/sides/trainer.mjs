import { tmpdir } from 'node:os';
import { performance } from 'node:perf_hooks';
import { Llama } from '../../engine/dist/index.js';
import { tensorsOf } from '../../engine/dist/exports/huggingFace.js';
import { writeSafetensors } from '../../engine/dist/io/safetensors.js';
import { adapterPlan } from '../../engine/dist/model/adapterSet.js';
import { chooseGraphs, defaultRunSpec } from '../../engine/dist/plan/index.js';
import { AdamW } from '../../engine/dist/training/adamW.js';
import { accumulateGradients, clipScale, globalNorm } from '../../engine/dist/training/gradients.js';
import { peakResidentBytes } from './processMemory.mjs';

const optimizerSettings = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weightDecay: 0, momentType: 'float32' };
const gradientNormMax = 1;

/**
 * Our side of a comparison: the same model, step and request names as the Trainer of pytorch.py. Rank 0 trains full-rank.
 * Layers are computed by the graphs that the planner chooses for a job of this shape, or by `graph`.
 */
export class Trainer {
  #model;
  #optimizer = new AdamW(optimizerSettings);
  #settings;
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
      ...rest
    },
    backend,
  ) {
    this.#settings = { config, batch, microBatch, graph, learningRate, seed, backend, ...rest };
    this.#model = Llama.create(config, seed);
    if (rank > 0) this.attach({ rank, alpha });
  }

  get parameterCount() {
    return [...this.#model.parameters.values()].reduce((sum, { variable }) => sum + variable.size, 0);
  }

  /** Writes the weights of a full-rank model under Hugging Face's names, for the other side to begin with. */
  async save({ path }) {
    const weight = async (name) => this.#model.parameters.get(name).variable.dataSync();
    await writeSafetensors(
      path,
      tensorsOf({ config: this.#model.config, weight, merged: weight }, 'F32', false),
    );
    return {};
  }

  /** Ends a warm start: the linear layers are frozen and get adapters. */
  attach({ rank, alpha }) {
    const { config, batch, time, microBatch, graph, seed, backend } = this.#settings;
    const spec = defaultRunSpec({
      model: config,
      adapter: { rank, alpha, graph },
      batch: { sequenceCount: batch, sequenceLength: time, microBatchSequenceCount: microBatch },
      precision:
        backend.basePrecision === backend.precision ? backend.precision : `${backend.basePrecision}Base`,
    });
    const plan = adapterPlan(chooseGraphs(spec, backend), tmpdir());
    this.#model.attachAdapters(spec.adapter, seed, this.#restartCount, plan);
    this.#optimizer.drop('base');
    return {};
  }

  /** Forward, backward, clipping, AdamW. Tokens that nobody gave are made up before the clock starts. */
  async step({ inputs, targets, learningRate = this.#settings.learningRate }) {
    const { microBatch, time, seed, recompute } = this.#settings;
    const tokens = inputs === undefined ? this.#madeUpTokens() : typedTokens({ inputs, targets });
    const shape = {
      step: this.#stepCount++,
      sequenceLength: time,
      microBatchSequenceCount: microBatch,
      seed,
      recompute,
    };
    const start = performance.now();
    const { loss, gradients } = await accumulateGradients(
      this.#model,
      tokens,
      shape,
      new AbortController().signal,
    );
    const scale = clipScale(globalNorm(gradients), gradientNormMax);
    this.#optimizer.apply(this.#model.trainable(), gradients, learningRate, scale);
    for (const gradient of gradients.values()) gradient.dispose();
    return { seconds: (performance.now() - start) / 1e3, loss, peakBytes: peakResidentBytes() };
  }

  /** Merge, requantisation and packing, fresh adapters, forgotten moments. */
  merge() {
    const start = performance.now();
    this.#model.mergeAdapters();
    this.#model.restartAdapters(this.#settings.seed, ++this.#restartCount);
    this.#optimizer.forgetAdapters('zero', 0, () => 0);
    return { seconds: (performance.now() - start) / 1e3, peakBytes: peakResidentBytes() };
  }

  /** Sum of the losses and the number of targets other than -1. */
  evaluate({ inputs, targets }) {
    const { time } = this.#settings;
    const tokens = typedTokens({ inputs, targets });
    return this.#model.sumLoss(tokens.inputs, tokens.targets, inputs.length / time, time);
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
