import * as contract from './contract.js';
import { ReloraError, type FieldViolation } from './errors.js';

/** The part of a generated message type that is used here. */
interface MessageType {
  fromPartial(value: object): unknown;
  toJSON(message: never): unknown;
  fromJSON(json: unknown): unknown;
}

const requestTypes = new Map<string, MessageType>(
  [
    contract.TrainingServiceDefinition,
    contract.ArtifactServiceDefinition,
    contract.DatasetServiceDefinition,
    contract.ModelServiceDefinition,
    contract.WeightsServiceDefinition,
    contract.WebhookServiceDefinition,
    contract.ServerServiceDefinition,
  ].flatMap(({ fullName, methods }) =>
    Object.values(methods).map(({ name, requestType }) => [`/${fullName}/${name}`, requestType] as const),
  ),
);

/**
 * Refuses a request with an unknown field or a value of the wrong type, as the compiler does for TypeScript: otherwise such a field would
 * silently get its default, and a typing mistake would start an unintended training.
 */
export function checkRequest(path: string, request: unknown): void {
  const type = requestTypes.get(path);
  if (type !== undefined) checkMessage(type, request as object, '');
}

export function checkMessage(type: MessageType, given: object, path: string): void {
  // After conversion to JSON and back, every value has the type of its field.
  const read = type.fromJSON(type.toJSON(type.fromPartial(given) as never));
  refuse(violations({ given, message: read, written: read, path, nameOf: (key) => key, isSame: isEqual }));
}

/** Throws INVALID_ARGUMENT with all problems, if there are any. */
export function refuse(fields: readonly FieldViolation[], reason = 'REQUEST_INVALID'): void {
  if (fields.length === 0) return;
  const message = fields.map(({ field, description }) => `${field}: ${description}`).join('; ');
  throw new ReloraError(message, { code: 'INVALID_ARGUMENT', reason, fields });
}

interface Comparison {
  given: object;
  /** As a message, which has every field. */
  message: unknown;
  /** The same as JSON again, where integers are whole and enums have names. */
  written: unknown;
  path: string;
  /** The field that a key refers to. */
  nameOf: (key: string) => string;
  isSame: (given: unknown, read: unknown) => boolean;
}

/** Compares what was given with what was read from it. */
export function violations(comparison: Comparison): FieldViolation[] {
  const { given, message, written, path, nameOf, isSame } = comparison;
  return Object.entries(given).flatMap(([key, value]): FieldViolation[] => {
    if (value === null || value === undefined) return []; // ways to omit a field
    const field = path === '' ? key : `${path}.${key}`;
    const name = nameOf(key);
    if (!hasField(message, name)) return [{ field, description: 'there is no such field' }];
    const read: unknown = message[name];
    if (read instanceof Uint8Array && value instanceof Uint8Array) return [];
    const again: unknown = hasField(written, name) ? written[name] : read;
    if (
      typeof value === 'object' &&
      typeof read === 'object' &&
      Array.isArray(value) === Array.isArray(read)
    ) {
      return violations({ ...comparison, given: value, message: read, written: again, path: field });
    }
    return isSame(value, again) ? [] : [{ field, description: `${shown(value)} is no value of this field` }];
  });
}

function hasField(value: unknown, name: string): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, name);
}

function isEqual(given: unknown, read: unknown): boolean {
  return given === read;
}

function shown(value: unknown): string {
  // JSON cannot represent these.
  return typeof value === 'number' || typeof value === 'bigint'
    ? String(value)
    : (JSON.stringify(value) ?? typeof value);
}
