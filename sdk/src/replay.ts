import { resultOf, type Bundle } from './bundle.js';
import type { ReloraClient } from './client.js';
import { DatasetState, type Execution, type Job, type JobSpec } from './contract.js';
import { ReloraError } from './errors.js';
import type { JobEvent } from './events.js';

export interface ReplayOptions {
  signal?: AbortSignal;
  /** Called for each event of the new job. */
  onEvent?: (event: JobEvent) => void;
  /** Called with the new job once it is stored. */
  onCreated?: (job: Job) => void;
}

/** A recorded fact that differs between two executions. */
export interface FactDifference {
  fact: keyof Execution;
  expected: string;
  found: string;
}

export interface ReplayReport {
  /** Whether every file that the job exported at its end has the SHA-256 that is in the bundle. */
  isIdentical: boolean;
  /** The new job. */
  job: string;
  /** All files of either job; an empty hash if one of them does not have the file. */
  files: { fileName: string; expectedSha256: string; foundSha256: string }[];
  /** First step whose training loss differs; null if there is none. Steps that either job knows only as part of a span are ignored. */
  firstDifferingStep: { step: number; expected: number | null; found: number | null } | null;
  /** Recorded facts that differ between the two executions. */
  facts: FactDifference[];
}

/**
 * What determines the bits in addition to the settings. The hash of the specification is not among them: a replay fixes some settings,
 * which changes it.
 */
const decidingFacts = [
  'engineVersion',
  'backend',
  'instructionSet',
  'precision',
  'basePrecision',
  'graphs',
  'datasetSha256',
  'baseWeightsSha256',
  'nodeVersion',
  'tfjsVersion',
  'libraries',
] as const satisfies (keyof Execution)[];

/** What is different on this server than in the bundle, as far as it is known before the run. Bits may then differ. */
export async function compareServer(
  client: ReloraClient,
  { execution }: Bundle,
  options: { signal?: AbortSignal } = {},
): Promise<FactDifference[]> {
  const { version, devices } = await client.serverInfo(options);
  const device = devices.find(({ backend }) => backend === execution.backend);
  const there: Partial<Execution> = {
    engineVersion: version,
    backend: device?.backend ?? 'none such',
    ...(device === undefined ? {} : { instructionSet: device.instructionSet }),
  };
  return differences(execution, { ...execution, ...there });
}

/**
 * Runs a bundle as a new job, on the data set with the same content, and compares the result bit for bit. Throws ReloraError NOT_FOUND if
 * the server does not have that data set, and the errors of createJob and waitForJob.
 */
export async function replayBundle(
  client: ReloraClient,
  bundle: Bundle,
  { signal, onEvent, onCreated }: ReplayOptions = {},
): Promise<ReplayReport> {
  const options = signal === undefined ? {} : { signal };
  const data = await findData(client, bundle, options);
  const created = await client.createJob(
    { ...bundle.spec, ...data, evaluations: await evaluationsThere(client, bundle, options) },
    { displayName: `Replay of ${bundle.job}`.slice(0, 63), updates: bundle.updates, ...options },
  );
  onCreated?.(created);
  const job = await client.waitForJob(created.name, { ...options, ...(onEvent ? { onEvent } : {}) });
  const result = await resultOf(client, job.name, options);
  const files = pairFiles(bundle.files, result.files);
  return {
    isIdentical: files.every(({ expectedSha256, foundSha256 }) => expectedSha256 === foundSha256),
    job: job.name,
    files,
    firstDifferingStep: firstDifference(bundle, result),
    facts: job.execution === undefined ? [] : differences(bundle.execution, job.execution),
  };
}

/** The data fields of a specification, with the names on this server. */
async function findData(
  client: ReloraClient,
  { dataset, mixture, spec }: Bundle,
  options: { signal?: AbortSignal },
): Promise<Pick<JobSpec, 'dataset' | 'mixture' | 'omittedDocuments'>> {
  const omittedFrom = (names: ReadonlyMap<string, string>): JobSpec['omittedDocuments'] =>
    spec.omittedDocuments.map((document) => ({
      ...document,
      dataset: names.get(document.dataset) ?? document.dataset,
    }));
  if (mixture.length === 0) {
    const found = await findDataset(client, dataset, options);
    return { dataset: found, mixture: [], omittedDocuments: omittedFrom(new Map([[spec.dataset, found]])) };
  }
  const parts: JobSpec['mixture'] = [];
  for (const [index, part] of mixture.entries())
    parts.push({ ...spec.mixture[index], dataset: await findDataset(client, part, options) });
  const names = new Map(parts.map((part, index) => [spec.mixture[index]!.dataset, part.dataset]));
  return { dataset: parts[0]!.dataset, mixture: parts, omittedDocuments: omittedFrom(names) };
}

/** Named evaluations do not affect what is compared: one whose data set this server does not have is left out. */
async function evaluationsThere(
  client: ReloraClient,
  { spec: { evaluations } }: Bundle,
  options: { signal?: AbortSignal },
): Promise<JobSpec['evaluations']> {
  if (evaluations.every(({ dataset }) => dataset === '')) return evaluations;
  const ready = new Set(['']);
  for await (const { name, state } of client.listDatasets(options))
    if (state === DatasetState.READY) ready.add(name);
  return evaluations.filter(({ dataset }) => ready.has(dataset));
}

/** Finds it by content: on another server it has another name. */
async function findDataset(
  client: ReloraClient,
  dataset: Bundle['dataset'],
  options: { signal?: AbortSignal },
): Promise<string> {
  const matches: string[] = [];
  for await (const { name, state, manifestSha256 } of client.listDatasets(options)) {
    if (state !== DatasetState.READY || manifestSha256 !== dataset.manifestSha256) continue;
    // The same name makes the specification the same.
    if (name === dataset.name) return name;
    matches.push(name);
  }
  if (matches[0] !== undefined) return matches[0];
  throw new ReloraError(
    `The server has no data set whose manifest has SHA-256 ${dataset.manifestSha256}, as ${dataset.name} had: upload the same files with the same preparation`,
    { code: 'NOT_FOUND', reason: 'DATASET_NOT_FOUND' },
  );
}

function pairFiles(expected: Bundle['files'], found: Bundle['files']): ReplayReport['files'] {
  const names = new Set([...expected, ...found].map(({ fileName }) => fileName));
  const hashOf = (files: Bundle['files'], name: string) =>
    files.find(({ fileName }) => fileName === name)?.sha256 ?? '';
  return [...names].map((fileName) => ({
    fileName,
    expectedSha256: hashOf(expected, fileName),
    foundSha256: hashOf(found, fileName),
  }));
}

type Losses = Pick<Bundle, 'losses' | 'foldedSteps'>;

function firstDifference(expected: Losses, found: Losses): ReplayReport['firstDifferingStep'] {
  const folded = [...expected.foldedSteps, ...found.foldedSteps].sort((a, b) => a.first - b.first);
  let next = 0;
  for (let step = 0; step < Math.max(expected.losses.length, found.losses.length); step++) {
    while (next < folded.length && folded[next]!.last < step) next++;
    if (next < folded.length && folded[next]!.first <= step) continue;
    const [one = null, other = null] = [expected.losses[step], found.losses[step]];
    if (one !== other) return { step, expected: one, found: other };
  }
  return null;
}

function differences(expected: Execution, found: Execution): FactDifference[] {
  return decidingFacts
    .map((fact) => ({ fact, expected: factText(expected[fact]), found: factText(found[fact]) }))
    .filter((difference) => difference.expected !== difference.found);
}

function factText(value: Execution[(typeof decidingFacts)[number]]): string {
  if (typeof value === 'string') return value;
  return value.map((entry) => Object.values(entry).join(' ')).join(', ');
}
