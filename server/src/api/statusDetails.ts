import {
  BadRequest,
  ErrorInfo,
  PreconditionFailure,
  ResourceInfo,
  RetryInfo,
  RpcStatus,
  type Any,
} from '@relora/sdk/contract';
import { describeProblem, type ServiceError } from '../errors.js';

/** Domain of every ErrorInfo of this server. */
export const errorDomain = 'relora';

/** Violations beyond this are left out: the trailer must fit into the headers that a client accepts. */
const violationsMax = 40;
const textMax = 512;

/**
 * The google.rpc.Status of an error, for the trailer `grpc-status-details-bin`: one ErrorInfo with every part of the
 * message that changes, then what the catalogue says of its kind.
 */
export function encodeStatusDetails(error: ServiceError): Uint8Array {
  const { entry, reason } = error;
  const detail = error.detail as never;
  const message = error.details.slice(0, textMax);
  const details: Any[] = [
    pack('ErrorInfo', ErrorInfo.encode({ reason, domain: errorDomain, metadata: metadataOf(error.detail) })),
  ];

  const problems = entry.fields?.(detail) ?? [];
  if (problems.length > 0) {
    const fieldViolations = problems.slice(0, violationsMax).map((problem) => ({
      field: problem.field.slice(0, textMax),
      description: describeProblem(problem, { named: false }).slice(0, textMax),
      reason,
      localizedMessage: undefined,
    }));
    details.push(pack('BadRequest', BadRequest.encode({ fieldViolations })));
  }
  const resource = entry.resource?.(detail);
  if (resource !== undefined) {
    const { type, name } = resource;
    details.push(
      pack(
        'ResourceInfo',
        ResourceInfo.encode({ resourceType: type, resourceName: name, owner: '', description: message }),
      ),
    );
  }
  const precondition = entry.precondition?.(detail);
  if (precondition !== undefined) {
    details.push(
      pack(
        'PreconditionFailure',
        PreconditionFailure.encode({ violations: [{ ...precondition, description: message }] }),
      ),
    );
  }
  if (entry.retrySeconds !== undefined) {
    details.push(
      pack('RetryInfo', RetryInfo.encode({ retryDelay: { seconds: entry.retrySeconds, nanos: 0 } })),
    );
  }
  return RpcStatus.encode({ code: error.code, message, details }).finish();
}

/** Lists are left to BadRequest. */
function metadataOf(detail: object): Record<string, string> {
  const scalars = Object.entries(detail).filter(
    ([, value]) => typeof value === 'string' || typeof value === 'number',
  );
  return Object.fromEntries(scalars.map(([key, value]) => [key, String(value).slice(0, textMax)]));
}

function pack(type: string, writer: { finish(): Uint8Array }): Any {
  return { typeUrl: `type.googleapis.com/google.rpc.${type}`, value: Buffer.from(writer.finish()) };
}
