/** The contract `relora.v1`: messages, enums and service definitions, generated from proto/. */
export * from './generated/relora/v1/job.js';
export * from './generated/relora/v1/event.js';
export * from './generated/relora/v1/training_service.js';
export * from './generated/relora/v1/artifact_service.js';
export * from './generated/relora/v1/dataset_service.js';
export * from './generated/relora/v1/model_service.js';
export * from './generated/relora/v1/server_service.js';
// Every generated file has these; named here once, they are no longer ambiguous.
export { protobufPackage, protobufFileName, type DeepPartial, type MessageFns } from './generated/relora/v1/job.js';
export type { ServerStreamingMethodResult } from './generated/relora/v1/training_service.js';
