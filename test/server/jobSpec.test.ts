import { defaultRunSpec, presets } from '@relora/engine/plan';
import {
  AdapterGraph,
  AdapterOptimizer,
  AdapterScaling,
  type DeepPartial,
  EndOfData,
  Initialisation,
  ExportedWeights,
  ExportFormat,
  FullRankOptimizer,
  JobKind,
  JobSpec,
  MomentReset,
  MomentType,
  Precision,
  Recomputation,
  HeadPrecision,
  ReductionType,
  Synchronization,
  TargetModule,
  TrainedFactors,
  WeightType,
} from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { FieldChecks } from '../../server/dist/api/fieldChecks.js';
import { parseJobSpec, type FoundReferences } from '../../server/dist/api/jobSpec.js';
import { toSpec } from '../../server/dist/api/toProto.js';
import { readConfig } from '../../server/dist/config.js';
import type { Dataset } from '../../server/dist/datasets/dataset.js';

const limits = readConfig({});

const dataset = (trainTokens = 10_000_000, heldOutTokens = 5000, vocabularySize = 257): Dataset => ({
  id: 'tales',
  displayName: '',
  labels: {},
  owner: '',
  state: 'ready',
  failure: null,
  files: [],
  spec: { tokenizer: { kind: 'bytes' }, heldOutShare: 0.01, textField: 'text', seed: 0 },
  prepared: {
    tokenizer: { kind: 'bytes', vocabularySize, endOfTextId: 256, sha256: '' },
    train: { tokenCount: trainTokens, documentCount: 1, textBytes: trainTokens },
    heldOut: { tokenCount: heldOutTokens, documentCount: 1, textBytes: heldOutTokens },
    manifestSha256: 'a'.repeat(64),
  },
  preparedRatio: 1,
  createTimeMs: 0,
  deleteTimeMs: null,
  purgeTimeMs: null,
});

const minimal: DeepPartial<JobSpec> = {
  model: { preset: 'demo' },
  dataset: 'datasets/tales',
  stepCount: 400,
  adapter: { rank: 16, cycleStepCount: 100 },
};

function parse(changes: DeepPartial<JobSpec> = {}, found: Partial<FoundReferences> = {}) {
  const spec = JobSpec.fromPartial({ ...minimal, ...changes });
  return parseJobSpec(spec, { dataset: dataset(), baseWeights: null, ...found }, limits);
}

function accept(changes: DeepPartial<JobSpec> = {}, found: Partial<FoundReferences> = {}) {
  const parsed = parse(changes, found);
  if (parsed.spec === null) throw new Error(JSON.stringify(parsed.problems));
  return parsed;
}

const config = { hiddenSize: 64, intermediateSize: 128, numHiddenLayers: 2, numAttentionHeads: 4 };

describe('a job that stops at the end of its data', () => {
  const stop = { endOfData: EndOfData.STOP, batch: { sequenceLength: 512, sequenceCount: 16 } };
  // 1000 whole sequences are 62 whole steps.
  const data = { dataset: dataset(512_001) };

  it('may have as many steps as one pass, with the warm start', () => {
    const changes = {
      ...stop,
      stepCount: 50,
      warmStart: { stepCount: 12 },
      adapter: { rank: 16, cycleStepCount: 10 },
    };
    const { spec, warnings } = accept(changes, data);
    expect(spec.endOfData).toBe('stop');
    expect(toSpec(spec).endOfData).toBe(EndOfData.STOP);
    expect(warnings.map(({ reason }) => reason)).not.toContain('DATA_REPEATED');
    expect(accept({}, data).spec.endOfData).toBe('repeat');
  });

  it('is refused with more, and the message says how many there may be', () => {
    const changes = {
      ...stop,
      stepCount: 51,
      warmStart: { stepCount: 12 },
      adapter: { rank: 16, cycleStepCount: 51 },
    };
    expect(parse(changes, data).problems).toEqual([
      {
        field: 'spec.step_count',
        expected:
          'at most 50 after 12 of the warm start: with end_of_data STOP one pass over the data has 62 steps',
        got: '51',
      },
    ]);
    expect(parse({ ...changes, warmStart: { stepCount: 62 } }, data).problems[0]!.expected).toContain(
      'fewer steps than fit',
    );
  });

  it('is refused at once where the data have no whole sequence, which no number of steps reads twice', () => {
    const changes = { ...stop, stepCount: 50, adapter: { rank: 16, cycleStepCount: 10 } };
    expect(parse(changes, { dataset: dataset(512) }).problems).toEqual([
      {
        field: 'spec.batch.sequence_length',
        expected: 'less than 512, the tokens in the training part of datasets/tales',
        got: '512',
      },
    ]);
  });
});

describe('a minimal specification', () => {
  it('gets every default that job.proto names', () => {
    expect(accept().spec).toMatchObject({
      kind: 'relora',
      baseWeightsFolder: null,
      model: { hiddenSize: 192, vocabSize: 257 },
      warmStart: { stepCount: 100, learningRate: 5e-4, warmupStepCount: 10 },
      adapter: {
        alpha: 32,
        dropout: 0,
        restartWarmupStepCount: 5,
        momentReset: 'zero',
        momentPruneRatio: 0.9,
        trainableScale: false,
        graph: 'auto',
        targetModules: ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'],
      },
      learningRate: { peak: 1e-3, schedule: 'jaggedCosine', warmupStepCount: 5, minRatio: 0.1 },
      optimizer: {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weightDecay: 0,
        gradientNormMax: 1,
        nonfiniteStepCountMax: 0,
        momentType: 'float32',
        fullRankOptimizer: 'adamw',
        momentum: 0.95,
      },
      batch: { sequenceLength: 512, sequenceCount: 16, microBatchSequenceCount: 4 },
      precision: 'auto',
      recomputation: 'auto',
      endOfData: 'repeat',
      streams: { dataCut: 2, dropout: 2, fullRankWarmup: 2 },
      seed: 0,
      evaluation: { everyStepCount: 50, tokenCount: 65_536, finalTokenCount: 5000 },
      checkpoint: { everyStepCount: 50, keepCount: 2 },
      sample: { everyStepCount: 0, prompt: '', tokenCount: 64 },
      export: { weightType: 'float32' },
      priority: 0,
      device: 'auto',
    });
  });

  it('is the default that the engine fills in without a server', () => {
    const said = {
      model: { ...presets.demo!, vocabSize: 257 },
      dataset: 'datasets/tales',
      evaluation: { finalTokenCount: 5000 },
    };
    const { adapter, stepCount } = { adapter: { rank: 16, cycleStepCount: 100 }, stepCount: 400 };
    expect(accept().spec).toEqual(defaultRunSpec({ ...said, adapter, stepCount }));
    expect(accept({ kind: JobKind.FULL_RANK, adapter: undefined }).spec).toEqual(
      defaultRunSpec({ ...said, kind: 'fullRank', stepCount }),
    );
    expect(accept({ kind: JobKind.LORA, adapter: {} }).spec).toEqual(
      defaultRunSpec({ ...said, kind: 'lora', stepCount }),
    );
  });

  it('warms up after a restart for a twentieth of a cycle, and for a step at least', () => {
    const warmupOf = (cycleStepCount: number) =>
      accept({ adapter: { rank: 8, cycleStepCount } }).spec.adapter!.restartWarmupStepCount;
    expect([100, 40, 20, 10, 2, 1].map(warmupOf)).toEqual([5, 2, 1, 1, 1, 0]);
    expect(
      accept({ adapter: { rank: 8, cycleStepCount: 10, restartWarmupStepCount: 0 } }).spec.adapter,
    ).toMatchObject({
      restartWarmupStepCount: 0,
    });
  });

  it('has no warnings when it is sensible', () => {
    expect(accept().warnings).toEqual([]);
  });

  it('takes the rank of the smallest layer when 128 does not fit', () => {
    expect(accept({ model: { config }, adapter: { cycleStepCount: 100 } }).spec.adapter?.rank).toBe(64);
  });

  it('trains all weights for FULL_RANK, without adapters and warm start', () => {
    const { spec } = accept({ kind: JobKind.FULL_RANK, adapter: undefined });
    expect(spec).toMatchObject({
      adapter: null,
      warmStart: { stepCount: 0 },
      learningRate: { peak: 5e-4, schedule: 'cosine', warmupStepCount: 20 },
    });
  });

  it('has one cycle for LORA', () => {
    expect(accept({ kind: JobKind.LORA, adapter: { rank: 8 } }).spec.adapter?.cycleStepCount).toBe(400);
  });
});

describe('a recipe', () => {
  it('changes defaults: gradient-svd needs no warm start and has the scale 1', () => {
    const { spec, warnings } = accept({ recipe: 'gradient-svd' });
    expect(spec).toMatchObject({
      recipe: 'gradient-svd',
      warmStart: { stepCount: 0 },
      adapter: { rank: 16, alpha: 16, initialisation: 'gradientSvd', trainedFactors: 'bOnly' },
    });
    expect(warnings.map(({ reason }) => reason)).not.toContain('WARM_START_MISSING');
  });

  it('has a warm start by Muon for a fifth of all steps', () => {
    const { spec } = accept({ recipe: 'muon-warm', stepCount: 800 });
    expect(spec).toMatchObject({
      recipe: 'muon-warm',
      warmStart: { stepCount: 200, learningRate: 3e-3, optimizer: 'muon' },
      learningRate: { peak: 3e-3 },
      adapter: { rank: 16, alpha: 16, adapterOptimizer: 'adamw' },
    });
    expect(
      accept({ recipe: 'muon-warm', warmStart: { optimizer: FullRankOptimizer.ADAMW } }).spec,
    ).toMatchObject({
      warmStart: { stepCount: 100, learningRate: 3e-3, optimizer: 'adamw' },
    });
  });

  it('is a chain of three adapters for fine-tuning', () => {
    expect(accept({ recipe: 'chain-of-lora', adapter: undefined, stepCount: 100 }).spec).toMatchObject({
      warmStart: { stepCount: 0 },
      learningRate: { peak: 2e-4 },
      adapter: { rank: 8, alpha: 16, cycleStepCount: 34, targetModules: ['q_proj', 'v_proj'] },
    });
  });

  it('yields to every field that is set', () => {
    const { spec } = accept({
      recipe: 'gradient-svd',
      warmStart: { stepCount: 10 },
      adapter: { ...minimal.adapter, alpha: 5, trainedFactors: TrainedFactors.BOTH },
    });
    expect(spec).toMatchObject({
      warmStart: { stepCount: 10 },
      adapter: { alpha: 5, initialisation: 'gradientSvd', trainedFactors: 'both' },
    });
  });
});

describe('a stop by tokens', () => {
  it('is at the first whole step that has them all', () => {
    const batch = { sequenceLength: 64, sequenceCount: 4 };
    const stepsOf = (tokenCount: number) =>
      accept({ kind: JobKind.LORA, adapter: { rank: 8 }, batch, stepCount: undefined, tokenCount }).spec
        .stepCount;
    expect([1, 256, 257, 25_600].map(stepsOf)).toEqual([1, 1, 2, 100]);
  });
});

describe('what a job shows of its specification', () => {
  const cases: Record<string, DeepPartial<JobSpec>> = {
    relora: {},
    'short last cycle': { adapter: { rank: 4, cycleStepCount: 90, allowShortLastCycle: true } },
    lora: { kind: JobKind.LORA, adapter: { rank: 4, targetModules: [TargetModule.Q_PROJ] } },
    'full rank': { kind: JobKind.FULL_RANK, adapter: undefined, precision: Precision.BFLOAT16 },
    'least memory': {
      precision: Precision.NF4_BASE,
      recomputation: Recomputation.BLOCKS,
      optimizer: { momentType: MomentType.INT8 },
      adapter: { ...minimal.adapter, graph: AdapterGraph.WEIGHT_GRADIENT },
    },
    'beyond the paper': {
      adapter: {
        rank: 8,
        cycleStepCount: 64,
        cycleGrowth: 1.5,
        allowShortLastCycle: true,
        fullRankStepCount: 4,
        initialisation: Initialisation.GRADIENT_SVD,
        moduleRanks: [{ module: TargetModule.DOWN_PROJ, rank: 12 }],
        scaling: AdapterScaling.ALPHA_OVER_SQRT_RANK,
        bLearningRateRatio: 4,
      },
      omittedSteps: [{ first: 3, last: 5 }],
    },
    'an older stream': { streams: { dataCut: 1, dropout: 1, fullRankWarmup: 1 } },
    'gradient-svd': { recipe: 'gradient-svd' },
    'chain-of-lora': { recipe: 'chain-of-lora', adapter: undefined },
    'muon-warm': { recipe: 'muon-warm' },
    explicit: { model: { config: { ...config, tieWordEmbeddings: true, vocabSize: 300 } } },
  };
  for (const [name, changes] of Object.entries(cases)) {
    it(`makes the same run when it is sent again: ${name}`, () => {
      const { spec } = accept(changes);
      const sent = JobSpec.decode(JobSpec.encode(toSpec(spec)).finish());
      expect(parseJobSpec(sent, { dataset: dataset(), baseWeights: null }, limits).spec).toEqual(spec);
    });
  }
});

it('steps to omit are read by their name of 0.1.0 too, and a job is shown with both', () => {
  const steps = [{ first: 3, last: 5 }];
  const { spec } = accept({ skippedSteps: steps });
  expect(spec).toEqual(accept({ omittedSteps: steps }).spec);
  expect(toSpec(spec)).toMatchObject({ omittedSteps: steps, skippedSteps: steps });
});

describe('a wrong field is named with what was expected and what came', () => {
  const nan = NaN;
  const cases: [string, DeepPartial<JobSpec>, string, RegExp?][] = [
    [
      'an unknown kind',
      { kind: 'UNRECOGNIZED' as never },
      'spec.kind',
      /number that this server does not know/,
    ],
    ['no model', { model: {} }, 'spec.model', /exactly one/],
    ['an unknown preset', { model: { preset: 'lama-60m' } }, 'spec.model.preset', /did you mean llama-60m/],
    ['a preset of the prototype', { model: { preset: '__proto__' } }, 'spec.model.preset'],
    [
      'heads that do not divide the width',
      { model: { config: { ...config, numAttentionHeads: 5 } } },
      'spec.model.config.num_attention_heads',
      /divisor of hidden_size 64/,
    ],
    [
      'an odd head size',
      { model: { config: { ...config, hiddenSize: 36, numAttentionHeads: 4 } } },
      'spec.model.config.num_attention_heads',
      /even/,
    ],
    [
      'a head larger than every device has',
      { model: { config: { ...config, hiddenSize: 520, numAttentionHeads: 4 } } },
      'spec.model.config.num_attention_heads',
      /at most 128.*got 130/,
    ],
    [
      'key heads that do not divide the heads',
      { model: { config: { ...config, numKeyValueHeads: 3 } } },
      'spec.model.config.num_key_value_heads',
    ],
    [
      'a width of zero',
      { model: { config: { ...config, hiddenSize: 0 } } },
      'spec.model.config.hidden_size',
      /2 to/,
    ],
    [
      'a negative layer count',
      { model: { config: { ...config, numHiddenLayers: -1 } } },
      'spec.model.config.num_hidden_layers',
    ],
    [
      'a rotary base that is not a number',
      { model: { config: { ...config, ropeTheta: nan } } },
      'spec.model.config.rope_theta',
      /NaN/,
    ],
    [
      'a vocabulary below the tokenizer',
      { model: { config: { ...config, vocabSize: 256 } } },
      'spec.model.config.vocab_size',
      /at least 257/,
    ],
    ['a malformed data set', { dataset: 'datasets/../x' }, 'spec.dataset', /datasets\/\{dataset\}/],
    ['a name with broken UTF-8', { dataset: 'datasets/ta\ufffdles' }, 'spec.dataset'],
    ['no steps', { stepCount: undefined }, 'spec.step_count', /none/],
    ['zero steps', { stepCount: 0 }, 'spec.step_count'],
    [
      'too many steps',
      { stepCount: 1_000_000_001, adapter: { cycleStepCount: 1_000_000_001 } },
      'spec.step_count',
      /1000000000/,
    ],
    [
      'too many steps with the warm start',
      { stepCount: 999_999_000, adapter: { cycleStepCount: 1000 }, warmStart: { stepCount: 2000 } },
      'spec.step_count',
      /warm start/,
    ],
    [
      'steps that the cycle does not divide',
      { adapter: { cycleStepCount: 90 } },
      'spec.adapter.cycle_step_count',
      /nearest 80; or step_count 360 or 450/,
    ],
    ['no cycle', { adapter: { rank: 4 } }, 'spec.adapter.cycle_step_count', /RELORA needs it/],
    ['a cycle longer than the run', { adapter: { cycleStepCount: 401 } }, 'spec.adapter.cycle_step_count'],
    ['a cycle of LORA', { kind: JobKind.LORA }, 'spec.adapter.cycle_step_count', /no restarts/],
    ['adapters of FULL_RANK', { kind: JobKind.FULL_RANK }, 'spec.adapter'],
    [
      'a warm start of FULL_RANK',
      { kind: JobKind.FULL_RANK, adapter: undefined, warmStart: { stepCount: 3 } },
      'spec.warm_start',
    ],
    ['rank 0', { adapter: { rank: 0, cycleStepCount: 100 } }, 'spec.adapter.rank', /from 1 to 192/],
    [
      'a rank above the layer',
      { adapter: { rank: 193, cycleStepCount: 100 } },
      'spec.adapter.rank',
      /from 1 to 192/,
    ],
    [
      'an infinite alpha',
      { adapter: { cycleStepCount: 100, alpha: Infinity } },
      'spec.adapter.alpha',
      /Infinity/,
    ],
    ['a dropout of one', { adapter: { cycleStepCount: 100, dropout: 1 } }, 'spec.adapter.dropout'],
    [
      'a prune ratio of one',
      { adapter: { cycleStepCount: 100, momentPruneRatio: 1 } },
      'spec.adapter.moment_prune_ratio',
    ],
    [
      'a re-warm-up as long as the cycle',
      { adapter: { cycleStepCount: 100, restartWarmupStepCount: 100 } },
      'spec.adapter.restart_warmup_step_count',
      /0 to 99/,
    ],
    [
      'a module named twice',
      { adapter: { cycleStepCount: 100, targetModules: [TargetModule.Q_PROJ, TargetModule.Q_PROJ] } },
      'spec.adapter.target_modules[1]',
    ],
    [
      'no module',
      { adapter: { cycleStepCount: 100, targetModules: [TargetModule.UNSPECIFIED] } },
      'spec.adapter.target_modules[0]',
    ],
    [
      'a warm-up longer than the cycle',
      { learningRate: { warmupStepCount: 101 } },
      'spec.learning_rate.warmup_step_count',
      /0 to 100/,
    ],
    ['a rate that is not a number', { learningRate: { peak: nan } }, 'spec.learning_rate.peak', /NaN/],
    ['a negative rate', { learningRate: { peak: -1 } }, 'spec.learning_rate.peak'],
    ['a least rate of zero', { learningRate: { minRatio: 0 } }, 'spec.learning_rate.min_ratio'],
    [
      'an unknown schedule',
      { learningRate: { schedule: 'UNRECOGNIZED' as never } },
      'spec.learning_rate.schedule',
    ],
    ['beta2 of one', { optimizer: { beta2: 1 } }, 'spec.optimizer.beta2'],
    ['epsilon of zero', { optimizer: { epsilon: 0 } }, 'spec.optimizer.epsilon'],
    [
      'a sequence beyond the positions',
      { batch: { sequenceLength: 513 } },
      'spec.batch.sequence_length',
      /2 to 512/,
    ],
    [
      'a micro-batch that does not divide',
      { batch: { sequenceCount: 16, microBatchSequenceCount: 3 } },
      'spec.batch.micro_batch_sequence_count',
      /divisor of sequence_count 16/,
    ],
    [
      'too many tokens in a step',
      { batch: { sequenceCount: 65_536 } },
      'spec.batch.sequence_count',
      /tokens in a step/,
    ],
    [
      'an int8 base without a frozen base',
      { kind: JobKind.FULL_RANK, adapter: undefined, precision: Precision.INT8_BASE },
      'spec.precision',
      /FULL_RANK, which trains every weight: it has no frozen base, got INT8_BASE/,
    ],
    [
      'an nf4 base without a frozen base',
      { kind: JobKind.FULL_RANK, adapter: undefined, precision: Precision.NF4_BASE },
      'spec.precision',
      /no frozen base, got NF4_BASE/,
    ],
    [
      'an fp8 base without a frozen base',
      { kind: JobKind.FULL_RANK, adapter: undefined, precision: Precision.FP8_BASE },
      'spec.precision',
      /no frozen base, got FP8_BASE/,
    ],
    [
      'an fp8 base without a card',
      { device: 'native', precision: Precision.FP8_BASE },
      'spec.precision',
      /on native; only cuda has FP8_BASE, got FP8_BASE/,
    ],
    [
      'an fp8 base of narrow layers',
      {
        device: 'cuda',
        precision: Precision.FP8_BASE,
        model: { config: { ...config, hiddenSize: 32, numAttentionHeads: 4, numKeyValueHeads: 1 } },
      },
      'spec.precision',
      /layers of 16 features or more with FP8_BASE, got k_proj of 32 x 8/,
    ],
    [
      'an int8 base on a card',
      { device: 'cuda', precision: Precision.INT8_BASE },
      'spec.precision',
      /AUTO, FLOAT32, BFLOAT16 or FP8_BASE on cuda, got INT8_BASE/,
    ],
    [
      'an int8 base where there are no kernels for it',
      { device: 'reference', precision: Precision.INT8_BASE },
      'spec.precision',
      /AUTO or FLOAT32 on reference/,
    ],
    ['an unknown recomputation', { recomputation: 'UNRECOGNIZED' as never }, 'spec.recomputation', /BLOCKS/],
    [
      'an unknown type of moments',
      { optimizer: { momentType: 'UNRECOGNIZED' as never } },
      'spec.optimizer.moment_type',
      /FLOAT32 or INT8/,
    ],
    [
      'an unknown optimizer',
      { warmStart: { optimizer: 'UNRECOGNIZED' as never } },
      'spec.warm_start.optimizer',
      /ADAMW, MUON or APOLLO_MINI/,
    ],
    [
      'the optimizer of a kind that it is not',
      { optimizer: { fullRankOptimizer: FullRankOptimizer.MUON } },
      'spec.optimizer.full_rank_optimizer',
      /nothing but for FULL_RANK: warm_start\.optimizer .* got MUON/,
    ],
    [
      'an optimizer of a warm start that there is none of',
      { warmStart: { stepCount: 0, optimizer: FullRankOptimizer.MUON } },
      'spec.warm_start.optimizer',
      /nothing without a warm start, got MUON/,
    ],
    [
      'an optimizer of steps between cycles that there are none of',
      { adapter: { cycleStepCount: 100, fullRankOptimizer: FullRankOptimizer.APOLLO_MINI } },
      'spec.adapter.full_rank_optimizer',
      /nothing without full_rank_step_count, got APOLLO_MINI/,
    ],
    [
      'moments of eight bits where there are next to none',
      {
        warmStart: { optimizer: FullRankOptimizer.APOLLO_MINI },
        optimizer: { momentType: MomentType.INT8 },
      },
      'spec.optimizer.moment_type',
      /FLOAT32 with APOLLO_MINI/,
    ],
    ['a momentum of no optimizer', { optimizer: { momentum: 0.9 } }, 'spec.optimizer.momentum', /LORA_MUON/],
    ['a momentum of one', { optimizer: { momentum: 1 } }, 'spec.optimizer.momentum', /below 1/],
    [
      'norms of heads beside biases',
      { model: { config: { ...config, qkNorm: true, attentionBias: true } } },
      'spec.model.config.qk_norm',
      /one at most of attention_bias, qk_norm and no_rope_interval/,
    ],
    [
      'an odd size of heads',
      { model: { config: { ...config, headDim: 33 } } },
      'spec.model.config.head_dim',
      /an even number/,
    ],
    [
      'a trained scale with LoRA-Muon',
      {
        adapter: { cycleStepCount: 100, adapterOptimizer: AdapterOptimizer.LORA_MUON, trainableScale: true },
      },
      'spec.adapter.trainable_scale',
      /false with LORA_MUON/,
    ],
    [
      'another rate of B with LoRA-Muon',
      {
        adapter: { cycleStepCount: 100, adapterOptimizer: AdapterOptimizer.LORA_MUON, bLearningRateRatio: 4 },
      },
      'spec.adapter.b_learning_rate_ratio',
      /1 with LORA_MUON/,
    ],
    [
      'moments carried into another span',
      { adapter: { cycleStepCount: 100, momentReset: MomentReset.CARRY } },
      'spec.adapter.moment_reset',
      /CARRY is for LORA_MUON with OLD_SPAN or HALF_SPAN/,
    ],
    [
      'the old span where adapters are gone between cycles',
      { adapter: { cycleStepCount: 100, initialisation: Initialisation.OLD_SPAN, fullRankStepCount: 5 } },
      'spec.adapter.initialisation',
      /no old A, got OLD_SPAN/,
    ],
    [
      'an unknown graph',
      { adapter: { cycleStepCount: 100, graph: 'UNRECOGNIZED' as never } },
      'spec.adapter.graph',
      /WEIGHT_GRADIENT/,
    ],
    [
      'merged weights with a mask over the input of the adapter',
      { adapter: { cycleStepCount: 100, dropout: 0.1, graph: AdapterGraph.MERGED } },
      'spec.adapter.graph',
      /AUTO or SEPARATE with dropout 0.1, got MERGED/,
    ],
    [
      'merged weights of a quantized base',
      {
        precision: Precision.INT8_BASE,
        adapter: { cycleStepCount: 100, graph: AdapterGraph.MERGED },
      },
      'spec.adapter.graph',
      /with a quantized base, got MERGED/,
    ],
    [
      'growing cycles that the run does not end with',
      { adapter: { cycleStepCount: 100, cycleGrowth: 2 } },
      'spec.adapter.cycle_step_count',
      /step_count 300 or 700; or allow_short_last_cycle/,
    ],
    [
      'cycles that shrink',
      { adapter: { cycleStepCount: 100, cycleGrowth: 0.5 } },
      'spec.adapter.cycle_growth',
    ],
    [
      'growing cycles for LORA',
      { kind: JobKind.LORA, adapter: { rank: 8, cycleGrowth: 2 } },
      'spec.adapter.cycle_growth',
      /LORA, which has no restarts/,
    ],
    [
      'full-rank steps for LORA',
      { kind: JobKind.LORA, adapter: { rank: 8, fullRankStepCount: 2 } },
      'spec.adapter.full_rank_step_count',
      /LORA, which has no restarts/,
    ],
    [
      'full-rank steps that leave no room for adapters',
      { adapter: { cycleStepCount: 100, restartWarmupStepCount: 10, fullRankStepCount: 90 } },
      'spec.adapter.full_rank_step_count',
      /from 0 to 89/,
    ],
    [
      'moments that outlive their adapters',
      {
        adapter: { cycleStepCount: 100, fullRankStepCount: 5, momentReset: MomentReset.RANDOM },
      },
      'spec.adapter.moment_reset',
      /ZERO with full_rank_step_count/,
    ],
    [
      'a rate of B beside an A that has none',
      {
        adapter: { cycleStepCount: 100, trainedFactors: TrainedFactors.B_ONLY, bLearningRateRatio: 2 },
      },
      'spec.adapter.b_learning_rate_ratio',
      /1 with B_ONLY/,
    ],
    [
      'the rank of a module that is not adapted',
      {
        adapter: {
          cycleStepCount: 100,
          targetModules: [TargetModule.Q_PROJ],
          moduleRanks: [{ module: TargetModule.K_PROJ, rank: 4 }],
        },
      },
      'spec.adapter.module_ranks[0].module',
      /one of target_modules/,
    ],
    [
      'two ranks for one module',
      {
        adapter: {
          cycleStepCount: 100,
          moduleRanks: [
            { module: TargetModule.K_PROJ, rank: 4 },
            { module: TargetModule.K_PROJ, rank: 5 },
          ],
        },
      },
      'spec.adapter.module_ranks[1].module',
      /each module once/,
    ],
    [
      'a module rank above its side',
      {
        adapter: { cycleStepCount: 100, moduleRanks: [{ module: TargetModule.K_PROJ, rank: 193 }] },
      },
      'spec.adapter.module_ranks[0].rank',
      /from 1 to 192/,
    ],
    [
      'an unknown initialisation',
      { adapter: { cycleStepCount: 100, initialisation: 'UNRECOGNIZED' as never } },
      'spec.adapter.initialisation',
      /RANDOM, GRADIENT_SVD, OLD_SPAN or HALF_SPAN/,
    ],
    ['an adapter for FULL_RANK', { kind: JobKind.FULL_RANK }, 'spec.adapter', /nothing for FULL_RANK/],
    ['an unknown recipe', { recipe: 'gradient-svt' }, 'spec.recipe', /did you mean gradient-svd/],
    [
      'a recipe for another kind',
      { kind: JobKind.LORA, adapter: { rank: 8 }, recipe: 'chain-of-lora' },
      'spec.recipe',
      /chain-of-lora is for RELORA/,
    ],
    ['steps and tokens', { tokenCount: 1000 }, 'spec.token_count', /exactly one/],
    ['no tokens', { stepCount: undefined, tokenCount: 0 }, 'spec.token_count', /from 1 to/],
    [
      'ranges of omitted steps that overlap',
      {
        omittedSteps: [
          { first: 3, last: 5 },
          { first: 5, last: 6 },
        ],
      },
      'spec.omitted_steps[1].first',
      /from 6 to/,
    ],
    [
      'an omitted step after the end',
      { omittedSteps: [{ first: 0, last: 500 }] },
      'spec.omitted_steps[0].last',
    ],
    [
      'the same by the name of 0.1.0',
      { skippedSteps: [{ first: 0, last: 500 }] },
      'spec.skipped_steps[0].last',
    ],
    [
      'omitted steps that differ by the two names',
      { omittedSteps: [{ first: 0, last: 1 }], skippedSteps: [{ first: 0, last: 2 }] },
      'spec.skipped_steps',
      /the same as omitted_steps/,
    ],
    ['an unknown precision', { precision: 'UNRECOGNIZED' as never }, 'spec.precision'],
    ['a stream version to come', { streams: { dataCut: 3 } }, 'spec.streams.data_cut', /from 1 to 2/],
    ['a negative seed', { seed: -1 }, 'spec.seed'],
    ['a negative evaluation', { evaluation: { everyStepCount: -1 } }, 'spec.evaluation.every_step_count'],
    ['one checkpoint kept', { checkpoint: { keepCount: 1 } }, 'spec.checkpoint.keep_count', /2 to/],
    ['a checkpoint every 0 steps', { checkpoint: { everyStepCount: 0 } }, 'spec.checkpoint.every_step_count'],
    [
      'a prompt with a control character',
      { sample: { prompt: 'a\u0007b' } },
      'spec.sample.prompt',
      /U\+0007/,
    ],
    ['a prompt with a lone surrogate', { sample: { prompt: 'a\ud800' } }, 'spec.sample.prompt', /U\+D800/],
    ['a priority above 100', { priority: 101 }, 'spec.priority'],
    ['an unknown device', { device: 'gpu' }, 'spec.device', /"gpu"/],
    [
      'replicas that do not divide the batch',
      { replicas: 3 },
      'spec.replicas',
      /a divisor of batch.sequence_count 16, got 3/,
    ],
    ['more replicas than a setting allows', { replicas: 17 }, 'spec.replicas', /from 1 to 16, got 17/],
    [
      'more replicas at least than at most',
      { replicas: 2, replicasMin: 4 },
      'spec.replicas_min',
      /at most replicas, 2, got 4/,
    ],
    [
      'a least number of replicas that does not divide the batch',
      { replicas: 4, replicasMin: 3 },
      'spec.replicas_min',
      /a divisor of batch.sequence_count 16, or 0, got 3/,
    ],
    [
      'one process that is to agree once a cycle',
      { synchronization: Synchronization.EVERY_CYCLE },
      'spec.synchronization',
      /EVERY_STEP with one process, which has nobody to agree with, got EVERY_CYCLE/,
    ],
    [
      'processes that agree once a cycle, and no cycles',
      { kind: JobKind.LORA, replicas: 2, synchronization: Synchronization.EVERY_CYCLE },
      'spec.synchronization',
      /EVERY_STEP for LORA, which has no restarts/,
    ],
    ...(
      [
        [
          { adapter: { initialisation: Initialisation.OLD_SPAN } },
          'adapter.initialisation',
          /RANDOM .*, got OLD_SPAN/,
        ],
        [
          { adapter: { momentReset: MomentReset.MAGNITUDE } },
          'adapter.moment_reset',
          /ZERO .*, got MAGNITUDE/,
        ],
        [
          { adapter: { cycleStepCount: 20, fullRankStepCount: 3 } },
          'adapter.full_rank_step_count',
          /0 .*, got 3/,
        ],
        [{ optimizer: { momentType: MomentType.INT8 } }, 'optimizer.moment_type', /FLOAT32 .*, got INT8/],
      ] as const
    ).map(([changes, field, message]): [string, DeepPartial<JobSpec>, string, RegExp] => [
      `${field} that processes do not share which agree once a cycle`,
      { replicas: 2, synchronization: Synchronization.EVERY_CYCLE, ...changes },
      `spec.${field}`,
      message,
    ]),
    [
      'a reduction of one process alone',
      { reductionType: ReductionType.BFLOAT16 },
      'spec.reduction_type',
      /FLOAT32 with one process, which reduces nothing, got BFLOAT16/,
    ],
    [
      'a head in int8 on a card',
      { device: 'cuda', headPrecision: HeadPrecision.INT8 },
      'spec.head_precision',
      /SAME on cuda, got INT8/,
    ],
    [
      'a head in int8 that may go to a card',
      { device: 'native', acceptedDevices: ['native', 'cuda'], headPrecision: HeadPrecision.INT8 },
      'spec.head_precision',
      /SAME on cuda, got INT8/,
    ],
    [
      'a precision that one of the accepted devices lacks',
      { device: 'cuda', acceptedDevices: ['native'], precision: Precision.FP8_BASE },
      'spec.precision',
      /AUTO, FLOAT32, BFLOAT16, INT8_BASE or NF4_BASE on native; only cuda has FP8_BASE, got FP8_BASE/,
    ],
    [
      'replicas on several kinds of device',
      { replicas: 2, device: 'native', acceptedDevices: ['native', 'cuda'] },
      'spec.accepted_devices',
      /one kind of device for 2 replicas, got native, cuda/,
    ],
    [
      'replicas with masks that are drawn by micro-batch',
      { replicas: 2, streams: { dropout: 1 }, adapter: { dropout: 0.1 } },
      'spec.replicas',
      /1 with streams.dropout 1/,
    ],
    [
      'an accepted device twice',
      { device: 'cuda', acceptedDevices: ['native', 'native'] },
      'spec.accepted_devices',
      /each of native, cuda, tensorflow, reference once, got "native"/,
    ],
    [
      'accepted devices beside auto',
      { acceptedDevices: ['native'] },
      'spec.accepted_devices',
      /unset if device is auto/,
    ],
  ];
  for (const [name, changes, field, text] of cases) {
    it(name, () => {
      const { problems } = parse(changes);
      const problem = problems.find((candidate) => candidate.field === field);
      expect(problem, JSON.stringify(problems)).toBeDefined();
      if (text) expect(`expected ${problem!.expected}, got ${problem!.got}`).toMatch(text);
    });
  }

  it('all at once, each one time', () => {
    const { problems } = parse({
      model: { preset: 'demo' },
      stepCount: -5,
      seed: -1,
      learningRate: { peak: nan },
      batch: { sequenceLength: 0 },
      priority: 1000,
    });
    const fields = problems.map(({ field }) => field);
    for (const field of [
      'spec.step_count',
      'spec.seed',
      'spec.learning_rate.peak',
      'spec.batch.sequence_length',
      'spec.priority',
    ]) {
      expect(fields.filter((candidate) => candidate === field)).toHaveLength(1);
    }
  });

  it('without a specification at all', () => {
    expect(parseJobSpec(undefined, { dataset: undefined, baseWeights: null }, limits).problems).toEqual([
      { field: 'spec', expected: 'a JobSpec', got: 'none' },
    ]);
  });

  it('when the data set does not exist or is shorter than a sequence', () => {
    expect(parse({}, { dataset: undefined }).problems.map(({ field }) => field)).toEqual(['spec.dataset']);
    expect(parse({}, { dataset: dataset(512) }).problems.map(({ field }) => field)).toEqual([
      'spec.batch.sequence_length',
    ]);
  });

  it('when the model has more weights than the server allows', () => {
    const spec = JobSpec.fromPartial(minimal);
    const { problems } = parseJobSpec(
      spec,
      { dataset: dataset(), baseWeights: null },
      { ...limits, parametersMax: 1000 },
    );
    expect(problems).toMatchObject([{ field: 'spec.model', expected: 'at most 1000 weights' }]);
  });
});

describe('base weights', () => {
  const folder = '/models/base';
  const sound = {
    model_type: 'llama',
    hidden_size: 64,
    intermediate_size: 128,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    vocab_size: 300,
  };
  const path = { model: { baseWeights: { path: folder } }, adapter: { rank: 8, cycleStepCount: 100 } };

  it('give the shape of the model and need no warm start', () => {
    const { spec, warnings } = accept(path, {
      baseWeights: { folder, config: { ...sound, auto_map: { AutoModel: 'evil.py' } } },
    });
    expect(spec).toMatchObject({
      baseWeightsFolder: folder,
      model: { hiddenSize: 64, vocabSize: 300, numKeyValueHeads: 4 },
      warmStart: { stepCount: 0 },
    });
    expect(warnings).toEqual([]);
  });

  it('have the rotary base and the positions that Hugging Face gives them', () => {
    const { spec } = accept(path, {
      baseWeights: {
        folder,
        config: { ...sound, rope_parameters: { rope_type: 'default', rope_theta: 500_000 } },
      },
    });
    expect(spec.model).toMatchObject({ ropeTheta: 500_000, maxPositionEmbeddings: 2048 });
  });

  const cases: [string, Record<string, unknown>, string][] = [
    ['another scaling', { rope_scaling: { rope_type: 'yarn', factor: 8 } }, 'rope_scaling.rope_type'],
    ['half a scaling', { rope_scaling: { rope_type: 'llama3', factor: 8 } }, 'rope_scaling.low_freq_factor'],
    ['a rotation of a part', { partial_rotary_factor: 0.5 }, 'partial_rotary_factor'],
    ['a bias of the output projection', { attention_bias: true }, 'attention_bias'],
    ['a window', { model_type: 'mistral', num_key_value_heads: 4 }, 'sliding_window'],
    ['windows in some layers', { layer_types: ['full_attention', 'sliding_attention'] }, 'layer_types'],
    ['two minds', { architectures: ['Qwen2ForCausalLM'], model_type: 'llama' }, 'model_type'],
    ['heads of an odd size', { head_dim: 127 }, 'head_dim'],
    ['heads larger than any device computes', { head_dim: 256 }, 'head_dim'],
    ['a soft cap of another class', { final_logit_softcapping: 30 }, 'final_logit_softcapping'],
    ['another architecture', { model_type: 'gpt2' }, 'model_type'],
    ['a width that is text', { hidden_size: '64' }, 'hidden_size'],
    ['a fractional layer count', { num_hidden_layers: 1.5 }, 'num_hidden_layers'],
    ['an endless layer count', { num_hidden_layers: 1e308 }, 'num_hidden_layers'],
    ['no vocabulary', { vocab_size: undefined }, 'vocab_size'],
    ['a vocabulary below the tokenizer', { vocab_size: 100 }, 'vocab_size'],
  ];
  for (const [name, changes, field] of cases) {
    it(`are refused with ${name}`, () => {
      const { problems } = parse(path, { baseWeights: { folder, config: { ...sound, ...changes } } });
      expect(problems.map((problem) => problem.field)).toContain(`spec.model.base_weights.path.${field}`);
    });
  }

  it('are refused outside of the allowed folders', () => {
    expect(parse(path, { baseWeights: { problem: 'not there' } }).problems).toMatchObject([
      { field: 'spec.model.base_weights.path', got: 'not there' },
    ]);
  });
});

describe('what is allowed but probably not meant is a warning', () => {
  const cases: [string, DeepPartial<JobSpec>, Dataset, RegExp][] = [
    [
      'RANK_ABOVE_BREAK_EVEN',
      { adapter: { rank: 40, cycleStepCount: 100 } },
      dataset(),
      /^Rank 40 is above the break-even of q_proj, k_proj, v_proj, o_proj: 32 \(there 1\.08 times the arithmetic of full-rank training\)$/,
    ],
    ['RESTARTS_FEW', { adapter: { rank: 16, cycleStepCount: 200 } }, dataset(), /1 restarts/],
    ['WARM_START_MISSING', { warmStart: { stepCount: 0 } }, dataset(), /quarter/],
    [
      'CYCLE_SHORT',
      { adapter: { rank: 16, cycleStepCount: 10, restartWarmupStepCount: 5 } },
      dataset(),
      /5 of 10/,
    ],
    [
      'LAST_CYCLE_SHORT',
      { adapter: { rank: 16, cycleStepCount: 90, allowShortLastCycle: true } },
      dataset(),
      /40 steps, the others 90/,
    ],
    ['DATA_REPEATED', {}, dataset(100_000), /times.*; beyond about four/],
    [
      'DATA_REPEATED',
      {},
      dataset(4_000_000),
      /1\.0 times, each time in another order and without its last 255 tok/,
    ],
    ['HELD_OUT_EMPTY', {}, dataset(10_000_000, 0), /not evaluated/],
  ];
  for (const [reason, changes, data, text] of cases) {
    it(reason, () => {
      const { warnings } = accept(changes, { dataset: data });
      expect(warnings.map((warning) => warning.reason)).toEqual([reason]);
      expect(warnings[0]!.message).toMatch(text);
    });
  }
});

describe('labels and names', () => {
  const problemsOf = (check: (checks: FieldChecks) => void) => {
    const checks = new FieldChecks();
    check(checks);
    return checks.problems.map(({ field }) => field);
  };

  it('keep to their limits', () => {
    expect(problemsOf((checks) => checks.labels('labels', { team: 'search', 'a/b.c-d_e': 'ü' }))).toEqual([]);
    const many = Object.fromEntries(Array.from({ length: 33 }, (_, index) => [`k${index}`, '']));
    expect(problemsOf((checks) => checks.labels('labels', many))).toEqual(['labels']);
    expect(problemsOf((checks) => checks.labels('labels', { '': 'x' }))).toEqual(['labels']);
    expect(problemsOf((checks) => checks.labels('labels', { ['k'.repeat(64)]: 'x' }))).toEqual(['labels']);
    expect(problemsOf((checks) => checks.labels('labels', { key: 'x'.repeat(257) }))).toEqual([
      'labels["key"]',
    ]);
    const hostile = JSON.parse('{"__proto__": "x", "constructor": "y"}') as Record<string, string>;
    expect(problemsOf((checks) => checks.labels('labels', hostile))).toEqual(['labels']);
  });

  it('hold no control characters, no turned text and no broken UTF-8', () => {
    for (const name of ['a\nb', 'a\0', 'a\u202eb', 'a\ufffd', 'x'.repeat(64)]) {
      expect(problemsOf((checks) => checks.text('display_name', name, 63))).toEqual(['display_name']);
    }
    for (const id of ['abc', 'Abcd', '1abc', 'ab_d', 'abc-', '../abcd', 'a'.repeat(64)]) {
      expect(
        problemsOf((checks) => checks.id('job_id', id)),
        id,
      ).toEqual(['job_id']);
    }
    expect(problemsOf((checks) => checks.id('job_id', 'my-job-1'))).toEqual([]);
  });
});

/** Cycles of 50 steps; all but the first begin with 10 full-rank steps. */
function betweenCycles(stepCount: number): DeepPartial<JobSpec> {
  const adapter = { rank: 16, cycleStepCount: 50, restartWarmupStepCount: 5, fullRankStepCount: 10 };
  return { stepCount, adapter: { ...adapter, allowShortLastCycle: true } };
}

describe('what a job exports', () => {
  const { FULL_RANK } = JobKind;
  it('is the model in Hugging Face layout unless it says otherwise', () => {
    const { spec } = parse();
    expect(spec!.export).toEqual({
      weightType: 'float32',
      formats: ['huggingFace'],
      shardBytesMax: 5_000_000_000,
      weights: 'last',
      ggufType: 'float32',
    });
    const { BFLOAT16, Q8_0 } = WeightType;
    const formats = [ExportFormat.PEFT, ExportFormat.GGUF];
    const asked = { weightType: BFLOAT16, formats, shardBytesMax: 1000, ggufWeightType: Q8_0 };
    const other = parse({ export: asked });
    expect(other.spec!.export).toEqual({
      weightType: 'bfloat16',
      formats: ['peft', 'gguf'],
      shardBytesMax: 1000,
      weights: 'last',
      ggufType: 'q8_0',
    });
    expect(toSpec(other.spec!).export).toEqual({ ...asked, weights: ExportedWeights.LAST });
  });

  it.each([
    ['q8_0 outside of GGUF', { export: { weightType: WeightType.Q8_0 } }, 'spec.export.weight_type'],
    [
      'a layout twice',
      { export: { formats: [ExportFormat.PEFT, ExportFormat.PEFT] } },
      'spec.export.formats',
    ],
    [
      'adapters that the job does not have',
      { kind: FULL_RANK, adapter: undefined, export: { formats: [ExportFormat.PEFT] } },
      'spec.export.formats',
    ],
    ['no bytes for a file', { export: { shardBytesMax: 0 } }, 'spec.export.shard_bytes_max'],
    [
      'adapters at an end between cycles',
      { ...betweenCycles(105), export: { formats: [ExportFormat.PEFT] } },
      'spec.export.formats',
    ],
  ])('is refused with %s', (_, changes, field) => {
    expect(parse(changes).problems.map((problem) => problem.field)).toEqual([field]);
  });

  it('may be adapters where the last steps train some', () => {
    const { problems } = parse({ ...betweenCycles(115), export: { formats: [ExportFormat.PEFT] } });
    expect(problems).toEqual([]);
  });
});
