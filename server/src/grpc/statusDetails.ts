import { Metadata, status as Status, type StatusObject } from '@grpc/grpc-js';
import {
  BadRequest,
  ErrorInfo,
  PreconditionFailure,
  ResourceInfo,
  RetryInfo,
  RpcStatus,
  type Any,
} from '@relora/sdk/contract';
import { cutText, describeProblem, ServiceError } from '../errors.js';

/** Domain of every ErrorInfo of this server. */
export const errorDomain = 'relora';

/**
 * Clients based on gRPC's C core refuse trailers above 8 KiB, counting names and 32 bytes per entry. The message is percent-encoded, the
 * details are in base64; the rest is for the other entries.
 */
const encodedMessageBytesMax = 2000;
const detailsBytesMax = 4200;
/** Limit of the message inside the details. */
const statusMessageBytesMax = 1000;
/** Limit of one text inside the details. */
const textBytesMax = 256;

/** The final status of a call that threw: code, message and details, together short enough for every client. */
export function toStatus(error: unknown): Pick<StatusObject, 'code' | 'details' | 'metadata'> {
  // The middleware lets no other errors through; if one got here, its text must not get out.
  if (!(error instanceof ServiceError))
    return { code: Status.INTERNAL, details: '', metadata: new Metadata() };
  const metadata = new Metadata();
  metadata.set('grpc-status-details-bin', Buffer.from(encodeStatusDetails(error)));
  const { retrySeconds } = error.entry;
  if (retrySeconds !== undefined) metadata.set('grpc-retry-pushback-ms', String(retrySeconds * 1000));
  return { code: error.code, details: messageOf(error), metadata };
}

/**
 * The google.rpc.Status of an error, for the trailer `grpc-status-details-bin`: one ErrorInfo with every variable part of the message, then
 * the details that the catalog has for this error, then as many bad fields as fit.
 */
export function encodeStatusDetails(error: ServiceError): Uint8Array {
  const { entry, reason, code } = error;
  const detail = error.detail as never;
  const whole = messageOf(error);
  const message = cutBytes(whole);
  const details: Any[] = [
    pack('ErrorInfo', ErrorInfo.encode({ reason, domain: errorDomain, metadata: metadataOf(error.detail) })),
  ];

  if (entry.retrySeconds !== undefined) {
    details.push(
      pack('RetryInfo', RetryInfo.encode({ retryDelay: { seconds: entry.retrySeconds, nanos: 0 } })),
    );
  }
  const resource = entry.resource?.(detail);
  if (resource !== undefined) {
    const { type, name } = resource;
    const info = { resourceType: type, resourceName: cutBytes(name), owner: '', description: message };
    details.push(pack('ResourceInfo', ResourceInfo.encode(info)));
  }
  const precondition = entry.precondition?.(detail);
  if (precondition !== undefined) {
    const { type, subject } = precondition;
    const violation = { type, subject: cutBytes(subject), description: message };
    details.push(pack('PreconditionFailure', PreconditionFailure.encode({ violations: [violation] })));
  }
  // Some clients show this message instead of the trailer's.
  const shown = cutText(whole, statusMessageBytesMax, (part) => Buffer.byteLength(part));
  const encode = (all: Any[]): Uint8Array =>
    RpcStatus.encode({ code, message: shown, details: all }).finish();

  const fieldViolations: BadRequest['fieldViolations'] = [];
  // The 80 bytes are for an Any around them and for lengths.
  let bytesLeft = detailsBytesMax - encode(details).length - 80;
  for (const problem of entry.fields?.(detail) ?? []) {
    const violation = {
      field: cutBytes(problem.field),
      description: cutBytes(describeProblem(problem, { named: false })),
      reason,
      localizedMessage: undefined,
    };
    bytesLeft -= BadRequest.encode({ fieldViolations: [violation] }).finish().length;
    if (bytesLeft < 0) break;
    fieldViolations.push(violation);
  }
  if (fieldViolations.length > 0) details.push(pack('BadRequest', BadRequest.encode({ fieldViolations })));
  return encode(details);
}

function messageOf({ message }: ServiceError): string {
  // Half a surrogate pair cannot be encoded.
  const whole = message.replace(/\p{Surrogate}/gu, '\ufffd');
  return cutText(whole, encodedMessageBytesMax, (text) => encodeURI(text).length);
}

/** Without lists, which are in BadRequest. */
function metadataOf(detail: object): Record<string, string> {
  const scalars = Object.entries(detail).filter(
    ([, value]) => typeof value === 'string' || typeof value === 'number',
  );
  return Object.fromEntries(scalars.map(([key, value]) => [key, cutBytes(String(value))]));
}

function cutBytes(text: string): string {
  return cutText(text, textBytesMax, (part) => Buffer.byteLength(part));
}

function pack(type: string, writer: { finish(): Uint8Array }): Any {
  return { typeUrl: `type.googleapis.com/google.rpc.${type}`, value: Buffer.from(writer.finish()) };
}
