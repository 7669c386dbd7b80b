export * from './runSpec.js';
export * from './jobSettings.js';
export {
  keptValues,
  settle,
  type ChoiceSetting,
  type Context,
  type Draft,
  type Setting,
  type Settings,
  type Settled,
  type Take,
  type ValueOf,
  type ValuesOf,
} from './setting.js';
export * from './defaultRunSpec.js';
export { readStoredRunSpec } from './storedRunSpec.js';
export * from './presets.js';
export * from './chatTemplates.js';
export * from './cycles.js';
export * from './schedule.js';
export * from './runUpdate.js';
export { specAfter, SteeredSchedule } from './steeredSchedule.js';
export * from './layerMethod.js';
export { sequencesInPass } from './dataPass.js';
export * from './mixture.js';
export * from './adapterGraphs.js';
export * from './parameters.js';
export { architectureOf, architectures } from './architectures.js';
export { llamaConfigOf, ModelFolderInvalid, refuseUnknownKeys } from './llamaConfigFile.js';
export { endTokensOf, noEndTokens, type EndTokens } from './endTokens.js';
export * from './deviceSpeed.js';
export * from './packedBytes.js';
export * from './memoryModel.js';
export { loraMuonBytes, muonBytes } from './nativeSigns.js';
export * from './cardMemory.js';
export * from './memoryFit.js';
export * from './devicePrecisions.js';
export * from './resolveAuto.js';
export * from './replicas.js';
export { cycleMeanBytes, exchangedBytes } from './exchangedBytes.js';
export * from './optimizerCost.js';
export { secondsOf, stepTime, type TimeParts } from './timeModel.js';
export * from './estimate.js';
export * from './choiceQuestions.js';
export * from './stepSpan.js';
export * from './exportDifference.js';
export { specHash } from './specHash.js';
export * from './trainingEvent.js';
export * as shapes from './shapes.js';
