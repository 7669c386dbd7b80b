/** The contract `relora.v1`: messages, enums and service definitions, generated from proto/. */
export * from './generated/relora/v1/job.js';
export * from './generated/relora/v1/event.js';
export * from './generated/relora/v1/training_service.js';
export * from './generated/relora/v1/artifact_service.js';
export * from './generated/relora/v1/dataset_service.js';
export * from './generated/relora/v1/model_service.js';
export * from './generated/relora/v1/server_service.js';
export * from './generated/relora/v1/weights_service.js';
export * from './generated/relora/v1/webhook_service.js';
// Every generated file exports these; naming them here resolves the ambiguity.
export {
  protobufPackage,
  protobufFileName,
  type DeepPartial,
  type MessageFns,
} from './generated/relora/v1/job.js';
export type { ServerStreamingMethodResult } from './generated/relora/v1/training_service.js';
/** The content of the trailer `grpc-status-details-bin` of an error: an RpcStatus with an ErrorInfo and perhaps others as Any. */
export { Status as RpcStatus } from './generated/google/rpc/status.js';
export {
  BadRequest,
  BadRequest_FieldViolation,
  ErrorInfo,
  PreconditionFailure,
  ResourceInfo,
  RetryInfo,
} from './generated/google/rpc/error_details.js';
export { Any } from './generated/google/protobuf/any.js';
