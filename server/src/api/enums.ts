import type {
  AdapterGraph,
  DeviceChoice,
  Initialisation,
  MomentReset,
  MomentType,
  Phase,
  Precision,
  Recomputation,
  RunSpec,
  Scaling,
  ScheduleKind,
  TargetModule,
  TrainedFactors,
  WeightType,
} from '@relora/engine/plan';
import * as contract from '@relora/sdk/contract';
import type { DatasetFormat, DatasetSplit, DatasetState } from '../datasets/dataset.js';
import type { JobState } from '../jobs/job.js';

/** Enums of the contract and the words that the server uses for them. Unset values have the default that job.proto names. */
export const jobKinds: Readonly<Record<string, RunSpec['kind']>> = {
  [contract.JobKind.UNSPECIFIED]: 'relora',
  [contract.JobKind.RELORA]: 'relora',
  [contract.JobKind.LORA]: 'lora',
  [contract.JobKind.FULL_RANK]: 'fullRank',
};

export const momentResets: Readonly<Record<string, MomentReset>> = {
  [contract.MomentReset.UNSPECIFIED]: 'zero',
  [contract.MomentReset.ZERO]: 'zero',
  [contract.MomentReset.RANDOM]: 'random',
  [contract.MomentReset.MAGNITUDE]: 'magnitude',
};

export const targetModuleNames: Readonly<Record<string, TargetModule>> = {
  [contract.TargetModule.Q_PROJ]: 'q_proj',
  [contract.TargetModule.K_PROJ]: 'k_proj',
  [contract.TargetModule.V_PROJ]: 'v_proj',
  [contract.TargetModule.O_PROJ]: 'o_proj',
  [contract.TargetModule.GATE_PROJ]: 'gate_proj',
  [contract.TargetModule.UP_PROJ]: 'up_proj',
  [contract.TargetModule.DOWN_PROJ]: 'down_proj',
};

/** Null: decided by the kind of the job. */
export const scheduleKinds: Readonly<Record<string, ScheduleKind | null>> = {
  [contract.ScheduleKind.UNSPECIFIED]: null,
  [contract.ScheduleKind.JAGGED_COSINE]: 'jaggedCosine',
  [contract.ScheduleKind.COSINE]: 'cosine',
  [contract.ScheduleKind.LINEAR]: 'linear',
  [contract.ScheduleKind.CONSTANT]: 'constant',
};

export const precisions: Readonly<Record<string, Precision>> = {
  [contract.Precision.UNSPECIFIED]: 'auto',
  [contract.Precision.AUTO]: 'auto',
  [contract.Precision.FLOAT32]: 'float32',
  [contract.Precision.BFLOAT16]: 'bfloat16',
  [contract.Precision.INT8_BASE]: 'int8Base',
  [contract.Precision.NF4_BASE]: 'nf4Base',
};

export const recomputations: Readonly<Record<string, Recomputation>> = {
  [contract.Recomputation.UNSPECIFIED]: 'auto',
  [contract.Recomputation.AUTO]: 'auto',
  [contract.Recomputation.NONE]: 'none',
  [contract.Recomputation.BLOCKS]: 'blocks',
};

export const momentTypes: Readonly<Record<string, MomentType>> = {
  [contract.MomentType.UNSPECIFIED]: 'float32',
  [contract.MomentType.FLOAT32]: 'float32',
  [contract.MomentType.INT8]: 'int8',
};

export const adapterGraphs: Readonly<Record<string, AdapterGraph>> = {
  [contract.AdapterGraph.UNSPECIFIED]: 'auto',
  [contract.AdapterGraph.AUTO]: 'auto',
  [contract.AdapterGraph.SEPARATE]: 'separate',
  [contract.AdapterGraph.MERGED]: 'merged',
  [contract.AdapterGraph.WEIGHT_GRADIENT]: 'weightGradient',
};

export const initialisations: Readonly<Record<string, Initialisation>> = {
  [contract.Initialisation.UNSPECIFIED]: 'random',
  [contract.Initialisation.RANDOM]: 'random',
  [contract.Initialisation.GRADIENT_SVD]: 'gradientSvd',
};

export const trainedFactorChoices: Readonly<Record<string, TrainedFactors>> = {
  [contract.TrainedFactors.UNSPECIFIED]: 'both',
  [contract.TrainedFactors.BOTH]: 'both',
  [contract.TrainedFactors.B_ONLY]: 'bOnly',
};

export const adapterScalings: Readonly<Record<string, Scaling>> = {
  [contract.AdapterScaling.UNSPECIFIED]: 'alphaOverRank',
  [contract.AdapterScaling.ALPHA_OVER_RANK]: 'alphaOverRank',
  [contract.AdapterScaling.ALPHA_OVER_SQRT_RANK]: 'alphaOverSqrtRank',
};

export const weightTypes: Readonly<Record<string, WeightType>> = {
  [contract.WeightType.UNSPECIFIED]: 'float32',
  [contract.WeightType.FLOAT32]: 'float32',
  [contract.WeightType.FLOAT16]: 'float16',
  [contract.WeightType.BFLOAT16]: 'bfloat16',
};

export const deviceChoices: Readonly<Record<string, DeviceChoice>> = {
  auto: 'auto',
  native: 'native',
  tensorflow: 'tensorflow',
  reference: 'reference',
};

export const jobStates: Readonly<Record<string, JobState>> = {
  [contract.JobState.QUEUED]: 'queued',
  [contract.JobState.STARTING]: 'starting',
  [contract.JobState.RUNNING]: 'running',
  [contract.JobState.PAUSED]: 'paused',
  [contract.JobState.SUCCEEDED]: 'succeeded',
  [contract.JobState.FAILED]: 'failed',
  [contract.JobState.CANCELLED]: 'cancelled',
};

/** Null: from the name of the file. */
export const datasetFormats: Readonly<Record<string, DatasetFormat | null>> = {
  [contract.DatasetFormat.UNSPECIFIED]: null,
  [contract.DatasetFormat.TEXT]: 'text',
  [contract.DatasetFormat.JSONL]: 'jsonl',
  [contract.DatasetFormat.PARQUET]: 'parquet',
};

/** Null: divided by held_out_share. */
export const datasetSplits: Readonly<Record<string, DatasetSplit | null>> = {
  [contract.DatasetSplit.UNSPECIFIED]: null,
  [contract.DatasetSplit.TRAIN]: 'train',
  [contract.DatasetSplit.HELD_OUT]: 'heldOut',
};

const phases: Readonly<Record<string, Phase>> = {
  [contract.JobPhase.WARM_START]: 'warmStart',
  [contract.JobPhase.ADAPTER]: 'adapter',
  [contract.JobPhase.FULL_RANK]: 'fullRank',
};

const datasetStates: Readonly<Record<string, DatasetState>> = {
  [contract.DatasetState.UPLOADING]: 'uploading',
  [contract.DatasetState.PREPARING]: 'preparing',
  [contract.DatasetState.READY]: 'ready',
  [contract.DatasetState.FAILED]: 'failed',
};

/** The other way: each word becomes the last value of the contract that means it, so never `UNSPECIFIED`. */
export const toEnum = {
  jobKind: reverse<RunSpec['kind'], contract.JobKind>(jobKinds),
  momentReset: reverse<MomentReset, contract.MomentReset>(momentResets),
  targetModule: reverse<TargetModule, contract.TargetModule>(targetModuleNames),
  scheduleKind: reverse<ScheduleKind, contract.ScheduleKind>(scheduleKinds),
  precision: reverse<Precision, contract.Precision>(precisions),
  recomputation: reverse<Recomputation, contract.Recomputation>(recomputations),
  momentType: reverse<MomentType, contract.MomentType>(momentTypes),
  adapterGraph: reverse<AdapterGraph, contract.AdapterGraph>(adapterGraphs),
  initialisation: reverse<Initialisation, contract.Initialisation>(initialisations),
  trainedFactors: reverse<TrainedFactors, contract.TrainedFactors>(trainedFactorChoices),
  scaling: reverse<Scaling, contract.AdapterScaling>(adapterScalings),
  weightType: reverse<WeightType, contract.WeightType>(weightTypes),
  jobState: reverse<JobState, contract.JobState>(jobStates),
  phase: reverse<Phase, contract.JobPhase>(phases),
  datasetFormat: reverse<DatasetFormat, contract.DatasetFormat>(datasetFormats),
  datasetSplit: reverse<DatasetSplit, contract.DatasetSplit>(datasetSplits),
  datasetState: reverse<DatasetState, contract.DatasetState>(datasetStates),
};

function reverse<Word extends string, Value extends string>(
  table: Readonly<Record<string, Word | null>>,
): Readonly<Record<Word, Value>> {
  return Object.fromEntries(
    Object.entries(table).flatMap(([value, word]) => (word === null ? [] : [[word, value]])),
  ) as Record<Word, Value>;
}
