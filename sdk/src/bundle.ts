import type { ReloraClient } from './client.js';
import {
  AdapterGraph,
  Execution,
  JobSpec,
  JobState,
  JobUpdate,
  Precision,
  StopReason,
  StreamVersions,
  type ArtifactFile,
  type Job,
} from './contract.js';
import { ReloraError } from './errors.js';
import { parseJobSpec } from './specJson.js';
import { spanOf } from './stepSpan.js';

/** Everything that is needed to run a job again and to check that the result is the same. Written as JSON by `bundleToJson`. */
export interface Bundle {
  /** The job that it was made from. */
  job: string;
  /** The specification, with the values that `auto` had on its server. */
  spec: JobSpec;
  dataset: { name: string; manifestSha256: string };
  /** All data sets of a mixture, in its order; empty without a mixture. */
  mixture: { name: string; manifestSha256: string }[];
  execution: Execution;
  /** The files that the job exported at its end, which a replay has to reproduce; in a folder per format if there are several. */
  files: ArtifactFile[];
  /** Training loss of every step; null if it was not finite, or is only known as part of a span. */
  losses: (number | null)[];
  /** Steps whose individual losses are no longer known: older step events are folded into spans, of which only the last step remains. */
  foldedSteps: { first: number; last: number }[];
  /** Updates of the run, each at its step. */
  updates: JobUpdate[];
}

/** Describes the files next to it, and settings that a replay fixes; it is not a result. */
const manifestFileName = 'relora_manifest.json';

const bundleFormat = 'relora-bundle';
const bundleFormatVersion = 1;

/** The bundle of a job that succeeded. Throws ReloraError FAILED_PRECONDITION if the job cannot be run again from its start. */
export async function createBundle(
  client: ReloraClient,
  name: string,
  { signal }: { signal?: AbortSignal } = {},
): Promise<Bundle> {
  const options = signal === undefined ? {} : { signal };
  const job = await client.getJob(name, options);
  const { spec, execution } = requireReplayable(job);
  const { files, losses, foldedSteps } = await resultOf(client, name, options);
  if (files.length === 0) throw refusal(`${name} has no artifact of its end`);
  return {
    job: name,
    spec: pinned(spec, execution),
    dataset: { name: spec.dataset, manifestSha256: execution.datasetSha256 },
    mixture: execution.datasets.map(({ dataset, sha256 }) => ({ name: dataset, manifestSha256: sha256 })),
    execution,
    files,
    losses,
    foldedSteps,
    updates: [...job.updates.filter(({ step }) => step !== undefined), ...clockStop(job)],
  };
}

/**
 * The result of a job: the training loss of every step, the last one if a step was repeated after a crash, and the files that it exported
 * at its end. Exports that were requested separately are in no event, and are not part of the result.
 */
export async function resultOf(
  client: ReloraClient,
  name: string,
  options: { signal?: AbortSignal },
): Promise<Pick<Bundle, 'files' | 'losses' | 'foldedSteps'>> {
  const losses: Bundle['losses'] = [];
  let foldedSteps: Bundle['foldedSteps'] = [];
  const exported = new Set<string>();
  for await (const event of client.watch(name, options)) {
    if (event.kind === 'artifact') exported.add(event.artifact.artifact);
    if (event.kind !== 'step') continue;
    const { step, loss } = event.step;
    const { firstStep: first } = spanOf(event.step);
    // After a crash the run went back: the later steps are repeated.
    if (first < losses.length) {
      losses.length = first;
      foldedSteps = foldedSteps
        .filter((range) => range.first < first)
        .map((range) => ({ ...range, last: Math.min(range.last, first - 1) }));
    }
    if (first < step) foldedSteps.push({ first, last: step - 1 });
    while (losses.length < step) losses.push(null);
    losses.push(Number.isFinite(loss) ? loss : null);
  }
  const artifacts = (await client.listArtifacts(name, options)).filter((artifact) =>
    exported.has(artifact.name),
  );
  const files = artifacts.flatMap(({ format, files }) => {
    const folder = exported.size === 1 ? '' : `${format.replace('EXPORT_FORMAT_', '').toLowerCase()}/`;
    return files
      .filter(({ fileName }) => fileName !== manifestFileName)
      .map((file) => ({ ...file, fileName: `${folder}${file.fileName}` }));
  });
  return { files, losses, foldedSteps };
}

export function bundleToJson(bundle: Bundle): object {
  return {
    format: bundleFormat,
    formatVersion: bundleFormatVersion,
    ...bundle,
    spec: JobSpec.toJSON(bundle.spec),
    execution: Execution.toJSON(bundle.execution),
    updates: bundle.updates.map((update) => JobUpdate.toJSON(update)),
  };
}

/** Reads JSON from `bundleToJson`; throws ReloraError INVALID_ARGUMENT, which names the field. */
export function parseBundle(json: unknown): Bundle {
  const found = record('bundle', json);
  if (found.format !== bundleFormat || found.formatVersion !== bundleFormatVersion) {
    const came = `${JSON.stringify(found.format)} ${JSON.stringify(found.formatVersion)}`;
    throw invalid('format', `${bundleFormat} of version ${bundleFormatVersion}`, came);
  }
  const dataset = record('dataset', found.dataset);
  return {
    job: text('job', found.job),
    spec: withStreams(parseJobSpec(record('spec', found.spec))),
    dataset: {
      name: text('dataset.name', dataset.name),
      manifestSha256: sha256('dataset.manifestSha256', dataset.manifestSha256),
    },
    mixture: list('mixture', found.mixture ?? []).map((entry, index) => {
      const part = record(`mixture[${index}]`, entry);
      return {
        name: text(`mixture[${index}].name`, part.name),
        manifestSha256: sha256(`mixture[${index}].manifestSha256`, part.manifestSha256),
      };
    }),
    execution: Execution.fromJSON(record('execution', found.execution)),
    files: list('files', found.files).map((entry, index) => {
      const file = record(`files[${index}]`, entry);
      return {
        fileName: text(`files[${index}].fileName`, file.fileName),
        sizeBytes: number(`files[${index}].sizeBytes`, file.sizeBytes),
        sha256: sha256(`files[${index}].sha256`, file.sha256),
      };
    }),
    losses: list('losses', found.losses).map((loss, step) =>
      loss === null ? null : number(`losses[${step}]`, loss),
    ),
    // Bundles of version 0.1 have neither of these, nor a mixture.
    updates: list('updates', found.updates ?? []).map((entry, index) =>
      JobUpdate.fromJSON(record(`updates[${index}]`, entry)),
    ),
    foldedSteps: list('foldedSteps', found.foldedSteps ?? []).map((entry, index) => {
      const range = record(`foldedSteps[${index}]`, entry);
      return {
        first: number(`foldedSteps[${index}].first`, range.first),
        last: number(`foldedSteps[${index}].last`, range.last),
      };
    }),
  };
}

/** A rule that had no versions when the job ran is the same as its version 1. */
function withStreams(spec: JobSpec): JobSpec {
  const first = Object.fromEntries(Object.keys(StreamVersions.fromPartial({})).map((stream) => [stream, 1]));
  return { ...spec, streams: { ...first, ...spec.streams } };
}

function requireReplayable({ name, state, origin, spec, execution }: Job): {
  spec: JobSpec;
  execution: Execution;
} {
  if (state !== JobState.SUCCEEDED)
    throw refusal(`${name} is ${state}; only a job that succeeded has a result to compare with`);
  if (origin !== undefined)
    throw refusal(`${name} began at a checkpoint of ${origin.job} and cannot be run from its start`);
  if (spec === undefined || execution === undefined || execution.specSha256 === '')
    throw refusal(`${name} was run by a version that did not record its execution`);
  return { spec, execution };
}

/** If a time limit ended the run, a replay ends at the same step, whatever its own clock says. */
function clockStop({ progress, updates }: Job): JobUpdate[] {
  const byClock: readonly string[] = [StopReason.SECONDS, StopReason.DEVICE_HOURS];
  if (progress === undefined || !byClock.includes(progress.stopReason)) return [];
  return [JobUpdate.fromPartial({ number: updates.length + 1, step: progress.stepCount, stop: true })];
}

/** With the values that `auto` had. A specification has one graph for all layers; different ones are left to the planner. */
function pinned(spec: JobSpec, { backend, precision, graphs }: Execution): JobSpec {
  const [graph, ...others] = new Set(graphs.map((entry) => entry.graph));
  const isOne = graph !== undefined && others.length === 0;
  return {
    ...spec,
    stop: spec.stop && { ...spec.stop, seconds: 0, deviceHours: 0 },
    device: backend,
    precision: spec.precision === Precision.AUTO ? precision : spec.precision,
    adapter: spec.adapter && {
      ...spec.adapter,
      graph: spec.adapter.graph === AdapterGraph.AUTO && isOne ? graph : spec.adapter.graph,
    },
  };
}

function refusal(message: string): ReloraError {
  return new ReloraError(message, { code: 'FAILED_PRECONDITION', reason: 'NOT_REPLAYABLE' });
}

function invalid(field: string, expected: string, got: string): ReloraError {
  const fields = [{ field, description: `expected ${expected}, got ${got}` }];
  return new ReloraError(`${field}: expected ${expected}, got ${got}`, {
    code: 'INVALID_ARGUMENT',
    reason: 'BUNDLE_INVALID',
    fields,
  });
}

function shown(value: unknown): string {
  return (JSON.stringify(value) ?? 'nothing').slice(0, 80);
}

function record(field: string, value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw invalid(field, 'an object', shown(value));
  return value as Record<string, unknown>;
}

function list(field: string, value: unknown): unknown[] {
  if (!Array.isArray(value)) throw invalid(field, 'a list', shown(value));
  return value;
}

function text(field: string, value: unknown): string {
  if (typeof value !== 'string' || value === '') throw invalid(field, 'a text', shown(value));
  return value;
}

function number(field: string, value: unknown): number {
  if (typeof value !== 'number') throw invalid(field, 'a number', shown(value));
  return value;
}

function sha256(field: string, value: unknown): string {
  if (typeof value !== 'string' || !/^[0-9a-f]{64}$/.test(value))
    throw invalid(field, 'a SHA-256 in hexadecimal', shown(value));
  return value;
}
