import { Status, type ClientError, type Metadata } from 'nice-grpc-common';
import { BadRequest, ErrorInfo, RetryInfo, RpcStatus } from './contract.js';

/** One problem of a request: the field, and what was expected. */
export interface FieldViolation {
  /** Path in the request, for example `spec.adapter.rank`. */
  field: string;
  description: string;
}

/** Name of a gRPC status code. */
export type StatusName = keyof typeof Status;

/** The names of an error's classes: equal in every copy of this module, although the classes themselves differ. */
const classNames = Symbol.for('@relora/sdk/error');

/**
 * Every failed call throws one of these. `instanceof` also recognizes errors of another copy of the package: a program that both imports
 * and requires it has two.
 */
export class ReloraError extends Error {
  override name = 'ReloraError';
  /** @internal */
  declare readonly [classNames]: readonly string[];
  /** gRPC status. */
  readonly code: StatusName;
  /** Stable reason in UPPER_SNAKE_CASE, listed in docs/errors.md; empty if the error did not come from the server itself. */
  readonly reason: string;
  /** All problems of the request. */
  readonly fields: readonly FieldViolation[];
  /** The variable parts of the message; for a fault of the server its `errorId`, under which the server's log has more. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The server's advice on when to try again, milliseconds. */
  readonly retryDelayMs: number | undefined;
  /** Method that failed, `/relora.v1.TrainingService/CreateJob`. */
  readonly method: string;

  constructor(
    message: string,
    detail: Partial<Omit<ReloraError, keyof Error>> = {},
    options: { cause?: unknown } = {},
  ) {
    super(message, options);
    Object.defineProperty(this, classNames, { value: namesOf(new.target) });
    this.code = detail.code ?? 'UNKNOWN';
    this.reason = detail.reason ?? '';
    this.fields = detail.fields ?? [];
    this.metadata = detail.metadata ?? {};
    this.retryDelayMs = detail.retryDelayMs;
    this.method = detail.method ?? '';
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    return isOfClass(value, this.name);
  }
}

/** Whether a caught value is an error of this package, from whichever copy. */
export function isReloraError(value: unknown): value is ReloraError {
  return isOfClass(value, 'ReloraError');
}

function isOfClass(value: unknown, name: string): boolean {
  if (typeof value !== 'object' || value === null) return false;
  const names = (value as { [classNames]?: readonly string[] })[classNames];
  return names?.includes(name) ?? false;
}

/** From the class itself up to ReloraError. */
function namesOf(constructor: { name: string }): string[] {
  const names: string[] = [];
  for (let each = constructor; each !== Error; each = Object.getPrototypeOf(each) as typeof each)
    names.push(each.name);
  return names;
}

/** A job ended as failed or cancelled while its success was awaited. */
export class JobFailedError extends ReloraError {
  override name = 'JobFailedError';
}

/** A data set could not be prepared. */
export class DatasetFailedError extends ReloraError {
  override name = 'DatasetFailedError';
}

/** The downloaded bytes are not those of the artifact. */
export class IntegrityError extends ReloraError {
  override name = 'IntegrityError';
}

/** The error of a call with the details from its trailer. */
export function fromClientError(error: ClientError, trailer: Metadata | undefined): ReloraError {
  const detail = {
    code: Status[error.code] as StatusName,
    method: error.path,
    ...readDetails(trailer?.get('grpc-status-details-bin')),
  };
  // grpc-js ends some of its own messages with a title that nothing follows.
  const message = error.details.replace(/\.? Resolution note: $/, '');
  return new ReloraError(message, detail, { cause: error });
}

function readDetails(bytes: Uint8Array | undefined): Partial<Omit<ReloraError, keyof Error>> {
  if (bytes === undefined) return {};
  try {
    let detail: {
      reason?: string;
      metadata?: Record<string, string>;
      fields?: FieldViolation[];
      retryDelayMs?: number;
    } = {};
    for (const { typeUrl, value } of RpcStatus.decode(bytes).details) {
      switch (typeUrl.slice(typeUrl.lastIndexOf('.') + 1)) {
        case 'ErrorInfo': {
          const { reason, metadata } = ErrorInfo.decode(value);
          detail = { ...detail, reason, metadata };
          break;
        }
        case 'BadRequest':
          detail.fields = BadRequest.decode(value).fieldViolations.map(({ field, description }) => ({
            field,
            description,
          }));
          break;
        case 'RetryInfo': {
          const { retryDelay } = RetryInfo.decode(value);
          if (retryDelay) detail.retryDelayMs = retryDelay.seconds * 1000 + retryDelay.nanos / 1e6;
          break;
        }
      }
    }
    return detail;
  } catch {
    return {}; // details from another kind of server; code and message still say what happened
  }
}
