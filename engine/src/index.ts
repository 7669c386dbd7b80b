export { ExportDiffers } from './exports/exportDiffers.js';
export { measureExport, type ExportCheck } from './exports/measureExport.js';
export { engineVersion, tfjsVersion } from './engineVersion.js';
export { specHash } from './plan/specHash.js';
export { EngineError } from './engineError.js';
export * from './plan/index.js';

// Devices
export type * from './device/device.js';
export { DeviceFault, type DeviceFaultReason } from './device/deviceFaults.js';
export { alone, type Collective } from './device/collective.js';
export { connectDevices } from './device/connectDevices.js';
export { ExchangeCollective, MemberLost, type Exchange } from './device/exchange.js';
export { Mpi } from './device/cpu/mpi.js';
export { SharedMemory } from './device/cpu/sharedMemory.js';
export { openDevice, type CardOptions, type DeviceOptions } from './openDevice.js';
export {
  instructionSets,
  loadNativeAddon,
  type InstructionSet,
  type NativeAddon,
} from './device/cpu/nativeAddon.js';

// Runs
export { beginRun, type BaseWeightsBefore, type BeginRunOptions } from './training/beginRun.js';
export { trainLoop } from './training/trainLoop.js';
export { heldOutLoss, meansOf } from './evaluation/heldOutLoss.js';
export {
  evaluateChoices,
  encodeQuestions,
  logProbabilityOf,
  ChoiceTooLong,
} from './evaluation/multipleChoice.js';
export { takeDocuments, type StepRows } from './training/documentLosses.js';
export { reasonToStop, recordAfter } from './training/earlyStop.js';
export { disposeRun, type RunProgress, type TrainingRun } from './training/trainingRun.js';
export {
  BaseWeightsChanged,
  MomentsNotZero,
  RunMismatch,
  TrainingDiverged,
} from './training/trainingErrors.js';
export { MergeDrift } from './training/mergeDrift.js';
export { MergeNotFinite } from './model/adapterSet.js';

// Checkpoints
export { saveCheckpoint, type SavedCheckpoint } from './training/checkpoint.js';
export {
  verifyCheckpoint,
  type CheckpointManifest,
  type VerifiedCheckpoint,
} from './training/checkpointManifest.js';
export {
  CheckpointCorrupt,
  CheckpointNoSpace,
  CheckpointUnknownFormat,
} from './training/checkpointErrors.js';

// Models
export { Llama } from './model/llama.js';
export { loadModelFromCheckpoint } from './training/checkpointModel.js';
export {
  checkModelFolder,
  loadModelFolder,
  type LoadedModel,
  type ModelFolderReport,
} from './model/modelFolder.js';
export { exportModel, type ExportedModel, type ExportOptions } from './exports/exportModel.js';
export type { ExportedFile, ExportManifest } from './exports/exportManifest.js';
export { ExportImpossible } from './exports/exportImpossible.js';
export { runWeights } from './exports/runWeights.js';
export { withCheckpointWeights } from './exports/checkpointWeights.js';
export type { WeightSource } from './exports/weightSource.js';
export {
  openSafetensors,
  writeSafetensors,
  type SafetensorsFile,
  type TensorSource,
} from './io/safetensors.js';
export { SafetensorsInvalid } from './io/safetensorsHeader.js';
export { generateTokens, type GenerationSettings } from './generation/generateTokens.js';
