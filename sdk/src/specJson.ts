import { JobSpec } from './contract.js';
import { refuse, violations } from './requestFields.js';

/**
 * Reads a job specification from JSON as the API writes it: field names in camelCase or snake_case, enums by name. A field
 * that does not exist or a value of another type is an error, so that a slip of the pen is not a default.
 */
export function parseJobSpec(json: object): JobSpec {
  const spec = JobSpec.fromJSON(json);
  const written = JobSpec.toJSON(spec);
  const fields = violations({ given: json, message: spec, written, path: 'spec', nameOf: camelCase, isSame });
  refuse(fields, 'JOB_SPEC_INVALID');
  return spec;
}

function camelCase(key: string): string {
  return key.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
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
