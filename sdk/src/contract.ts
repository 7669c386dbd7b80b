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
// Every generated file has these; named here once, they are no longer ambiguous.
export {
  protobufPackage,
  protobufFileName,
  type DeepPartial,
  type MessageFns,
} from './generated/relora/v1/job.js';
export type { ServerStreamingMethodResult } from './generated/relora/v1/training_service.js';
/** What the trailer `grpc-status-details-bin` of an error holds: an RpcStatus with an ErrorInfo and maybe others as Any. */
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
