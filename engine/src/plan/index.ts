export * from './runSpec.js';
export { readStoredRunSpec } from './storedRunSpec.js';
export * from './presets.js';
export * from './schedule.js';
export * from './adapterGraphs.js';
export * from './parameters.js';
export { llamaConfigOf, ModelFolderInvalid } from './llamaConfigFile.js';
export * from './estimate.js';
