import { readFile, stat } from 'node:fs/promises';
import { isTenant } from '../access/principal.js';

/** The limits of a tenant; null for no limit. */
export interface Quota {
  /** Running jobs; further ones wait. */
  runningJobs: number | null;
  /** Waiting jobs; further ones are refused. */
  queuedJobs: number | null;
  /** Bytes of checkpoints, artifacts, data sets and weights; more are refused. */
  bytes: number | null;
  /** Device hours in the last windowDays; when they are used up, jobs wait. */
  deviceHours: number | null;
  windowDays: number;
}

export interface QuotaTable {
  default: Quota;
  tenants: ReadonlyMap<string, Quota>;
}

/** A quota file that cannot be used. The message names the file and what is wrong. */
export class QuotaFileInvalid extends Error {
  override name = 'QuotaFileInvalid';
}

export const noQuota: Quota = {
  runningJobs: null,
  queuedJobs: null,
  bytes: null,
  deviceHours: null,
  windowDays: 30,
};

export const noQuotas: QuotaTable = { default: noQuota, tenants: new Map() };

/** The allowed values of each field. */
const fields: Record<keyof Quota, { max: number; isWhole: boolean }> = {
  runningJobs: { max: 100_000, isWhole: true },
  queuedJobs: { max: 100_000, isWhole: true },
  bytes: { max: 2 ** 50, isWhole: true },
  deviceHours: { max: 1e9, isWhole: false },
  windowDays: { max: 366, isWhole: false },
};

/**
 * Reads `{"default": {…}, "tenants": {"acme": {…}}}`; fields missing in a tenant's entry are taken from the default. Throws
 * QuotaFileInvalid.
 */
export async function readQuotaFile(path: string): Promise<QuotaTable> {
  let text: string;
  try {
    const { mode } = await stat(path);
    // Whoever can write the file can give a tenant everything.
    if ((mode & 0o022) !== 0)
      throw new QuotaFileInvalid(`${path} can be written by others than its owner: chmod go-w ${path}`);
    text = await readFile(path, 'utf8');
  } catch (error) {
    if (error instanceof QuotaFileInvalid) throw error;
    throw new QuotaFileInvalid(`${path} cannot be read: ${(error as Error).message}`);
  }
  let file: unknown;
  try {
    file = JSON.parse(text);
  } catch (error) {
    throw new QuotaFileInvalid(`${path} is not JSON: ${(error as Error).message}`);
  }
  return parseQuotas(path, file);
}

function parseQuotas(path: string, file: unknown): QuotaTable {
  const problems: string[] = [];
  const top = entriesOf(file, 'the file', problems);
  for (const name of top.keys())
    if (name !== 'default' && name !== 'tenants')
      problems.push(`${JSON.stringify(name)} is not known; there are default and tenants`);
  const byDefault = parseQuota('default', top.get('default') ?? {}, noQuota, problems);
  const tenants = new Map<string, Quota>();
  for (const [tenant, entry] of entriesOf(top.get('tenants') ?? {}, 'tenants', problems)) {
    if (!isTenant(tenant))
      problems.push(`tenants: ${JSON.stringify(tenant)} cannot be a tenant: 2 to 32 of a-z, 0-9 and -`);
    tenants.set(tenant, parseQuota(`tenants.${tenant}`, entry, byDefault, problems));
  }
  if (problems.length > 0) throw new QuotaFileInvalid(`${path}: ${problems.join('; ')}`);
  return { default: byDefault, tenants };
}

function parseQuota(place: string, entry: unknown, base: Quota, problems: string[]): Quota {
  const quota: Record<string, number | null> = { ...base };
  for (const [name, value] of entriesOf(entry, place, problems)) {
    if (!Object.hasOwn(fields, name)) {
      problems.push(
        `${place}: ${JSON.stringify(name)} is not known; there are ${Object.keys(fields).join(', ')}`,
      );
      continue;
    }
    const { max, isWhole } = fields[name as keyof Quota];
    const mayBeNull = name !== 'windowDays';
    const isNumber = typeof value === 'number' && value >= 0 && value <= max && (mayBeNull || value > 0);
    if ((value === null && mayBeNull) || (isNumber && (!isWhole || Number.isInteger(value))))
      quota[name] = value;
    else
      problems.push(
        `${place}.${name} must be a ${isWhole ? 'whole number' : 'number'} ${mayBeNull ? 'from 0' : 'above 0'} to ${max}` +
          `${mayBeNull ? ', or null for no limit' : ''}, not ${JSON.stringify(value)}`,
      );
  }
  return quota as unknown as Quota;
}

/** The names and values of a JSON object; `__proto__` is an ordinary name. */
function entriesOf(value: unknown, place: string, problems: string[]): Map<string, unknown> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value))
    return new Map(Object.entries(value));
  problems.push(`${place} must be an object, not ${JSON.stringify(value)}`);
  return new Map();
}
