import { JobSpec } from './contract.js';
import { ReloraError, type FieldViolation } from './errors.js';

/**
 * Reads a job specification from JSON as the API writes it: field names in camelCase or snake_case, enums by name. A field
 * that does not exist is an error, so that a slip of the pen is not a default.
 */
export function parseJobSpec(json: object): JobSpec {
  const spec = JobSpec.fromJSON(json);
  const fields = unknownFields(json, JobSpec.toJSON(spec), 'spec');
  if (fields.length > 0) {
    const message = fields.map(({ field, description }) => `${field}: ${description}`).join('; ');
    throw new ReloraError(message, { code: 'INVALID_ARGUMENT', reason: 'JOB_SPEC_INVALID', fields });
  }
  return spec;
}

function unknownFields(given: object, known: unknown, path: string): FieldViolation[] {
  const names = new Map(Object.entries(typeof known === 'object' && known !== null ? known : {}));
  return Object.entries(given).flatMap(([key, value]): FieldViolation[] => {
    if (value === null || value === '' || (Array.isArray(value) && value.length === 0)) return [];
    const field = `${path}.${key}`;
    const name = key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
    if (!names.has(name)) return [{ field, description: 'there is no such field, or no such value' }];
    return typeof value === 'object' && !Array.isArray(value)
      ? unknownFields(value as object, names.get(name), field)
      : [];
  });
}
