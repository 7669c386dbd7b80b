import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { parseJobSpec, type JobSpec } from '@relora/sdk';
import { parse, YAMLParseError } from 'yaml';
import { pathProblem, UsageError } from './exitCodes.js';

/** The content of a run file in addition to its specification; flags of `relora run` take precedence. */
export interface RunFile {
  id?: string;
  title?: string;
  labels?: Record<string, string>;
  files?: string[];
  vocabulary?: number;
  output?: string;
  spec: JobSpec;
}

const isText = (value: unknown): boolean => typeof value === 'string';
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Fields other than `spec`, whose fields the SDK checks. cli/job.schema.json describes the same for editors. */
const fields: Record<string, { expected: string; holds(value: unknown): boolean }> = {
  id: { expected: 'a text', holds: isText },
  title: { expected: 'a text', holds: isText },
  labels: {
    expected: 'texts by name',
    holds: (value) => isObject(value) && Object.values(value).every(isText),
  },
  files: { expected: 'a list of paths', holds: (value) => Array.isArray(value) && value.every(isText) },
  vocabulary: { expected: 'a whole number', holds: Number.isInteger },
  output: { expected: 'the path of a folder', holds: isText },
  spec: { expected: 'an object, a JobSpec', holds: isObject },
};

/** Reads a run file, YAML or JSON. Its paths are relative to its own folder. */
export async function readRunFile(path: string): Promise<RunFile> {
  let value: unknown;
  try {
    value = parse(await readFile(path, 'utf8'), { strict: true, uniqueKeys: true });
  } catch (error) {
    const why = error instanceof YAMLParseError ? error.message.split('\n')[0]! : pathProblem(error);
    throw new UsageError(`${path} could not be read: ${why.replace(/:$/, '')}`);
  }
  if (!isObject(value))
    throw new UsageError(
      `${path} is not a run file: it must be an object with the field spec (see relora init)`,
    );
  for (const [name, given] of Object.entries(value)) {
    const field = fields[name];
    if (field === undefined)
      throw new UsageError(
        `${path}: ${name} is not a field of a run file; the fields are ${Object.keys(fields).join(', ')}`,
      );
    if (!field.holds(given))
      throw new UsageError(`${path}: ${name} expected ${field.expected}, got ${JSON.stringify(given)}`);
  }
  if (value.spec === undefined)
    throw new UsageError(`${path}: spec expected ${fields.spec!.expected}, got nothing`);
  const { files, ...rest } = value as Omit<RunFile, 'spec'> & { spec: object };
  const folder = dirname(path);
  return {
    ...rest,
    ...(files === undefined ? {} : { files: files.map((file) => resolve(folder, file)) }),
    spec: parseJobSpec(rest.spec),
  };
}
