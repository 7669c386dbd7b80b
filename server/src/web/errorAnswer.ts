import { status as Status } from '@grpc/grpc-js';
import {
  BadRequest,
  ErrorInfo,
  PreconditionFailure,
  ResourceInfo,
  RetryInfo,
  RpcStatus,
} from '@relora/sdk/contract';
import type { ServiceError } from '../errors.js';
import { encodeStatusDetails } from '../grpc/statusDetails.js';

/** The mapping of gRPC codes in Google's APIs. */
const httpStatuses: Readonly<Partial<Record<Status, number>>> = {
  [Status.CANCELLED]: 499,
  [Status.INVALID_ARGUMENT]: 400,
  [Status.DEADLINE_EXCEEDED]: 504,
  [Status.NOT_FOUND]: 404,
  [Status.ALREADY_EXISTS]: 409,
  [Status.PERMISSION_DENIED]: 403,
  [Status.UNAUTHENTICATED]: 401,
  [Status.RESOURCE_EXHAUSTED]: 429,
  [Status.FAILED_PRECONDITION]: 400,
  [Status.ABORTED]: 409,
  [Status.OUT_OF_RANGE]: 400,
  [Status.UNIMPLEMENTED]: 501,
  [Status.UNAVAILABLE]: 503,
};

const detailTypes = { BadRequest, ErrorInfo, PreconditionFailure, ResourceInfo, RetryInfo };

/** An error in the JSON form of Google's APIs: the same code, message and details as over gRPC. */
export function errorAnswer(error: ServiceError): { status: number; json: unknown } {
  const { code, message, details } = RpcStatus.decode(encodeStatusDetails(error));
  const status = httpStatuses[error.code] ?? 500;
  return {
    status,
    json: {
      error: {
        code: status,
        status: Status[code],
        message,
        details: details.map(({ typeUrl, value }) => {
          const type = detailTypes[typeUrl.slice(typeUrl.lastIndexOf('.') + 1) as keyof typeof detailTypes];
          return { '@type': typeUrl, ...(type.toJSON(type.decode(value) as never) as object) };
        }),
      },
    },
  };
}
