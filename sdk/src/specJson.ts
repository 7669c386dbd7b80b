import { JobSpec } from './contract.js';
import { ReloraError, type FieldViolation } from './errors.js';

/**
 * Reads a job specification from JSON as the API writes it: field names in camelCase or snake_case, enums by name. A field
 * that does not exist or a value of another type is an error, so that a slip of the pen is not a default.
 */
export function parseJobSpec(json: object): JobSpec {
  const spec = JobSpec.fromJSON(json);
  const fields = violations(json, spec, JobSpec.toJSON(spec), 'spec');
  if (fields.length > 0) {
    const message = fields.map(({ field, description }) => `${field}: ${description}`).join('; ');
    throw new ReloraError(message, { code: 'INVALID_ARGUMENT', reason: 'JOB_SPEC_INVALID', fields });
  }
  return spec;
}

/**
 * What was given, against what was read of it: as a message, which has every field, and written as JSON again, where
 * integers are whole and enums have names.
 */
function violations(given: object, message: unknown, written: unknown, path: string): FieldViolation[] {
  return Object.entries(given).flatMap(([key, value]): FieldViolation[] => {
    if (value === null) return []; // JSON's way to leave a field out
    const field = `${path}.${key}`;
    const name = key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
    if (!hasField(message, name)) return [{ field, description: 'there is no such field' }];
    const read: unknown = message[name];
    const again: unknown = hasField(written, name) ? written[name] : read;
    if (
      typeof value === 'object' &&
      typeof read === 'object' &&
      Array.isArray(value) === Array.isArray(read)
    ) {
      return violations(value as object, read, again, field);
    }
    return isSame(value, again)
      ? []
      : [{ field, description: `${JSON.stringify(value)} is no value of this field` }];
  });
}

function hasField(value: unknown, name: string): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, name);
}

/** JSON may write large integers as strings, and enums as numbers. */
function isSame(given: unknown, read: unknown): boolean {
  if (given === read) return true;
  if (typeof read === 'number')
    return typeof given === 'string' && given.trim() !== '' && Number(given) === read;
  return (
    typeof read === 'string' && typeof given === 'number' && /^[A-Z]/.test(read) && read !== 'UNRECOGNIZED'
  );
}
