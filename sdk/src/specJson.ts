import { JobSpec } from './contract.js';
import { refuse, violations } from './requestFields.js';

/**
 * Reads a job specification from JSON in the API's form: field names in camelCase or snake_case, enums by name. An unknown field or a value
 * of the wrong type is an error, so that a typing mistake does not silently become a default.
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

/** JSON may contain large integers as strings, and enums as numbers. */
function isSame(given: unknown, read: unknown): boolean {
  if (given === read) return true;
  if (typeof read === 'number')
    return typeof given === 'string' && given.trim() !== '' && Number(given) === read;
  return (
    typeof read === 'string' && typeof given === 'number' && /^[A-Z]/.test(read) && read !== 'UNRECOGNIZED'
  );
}
