import { readFile } from 'node:fs/promises';
import type { Logger } from 'pino';
import { JobSpec } from '@relora/sdk/contract';
import { isTerminal, type Job, type JobEvent } from '../jobs/job.js';
import { nameOf, tenantOf } from '../store/tenantIds.js';
import { pointsOf, type Point, type Reached } from './points.js';
import type { Tracker } from './tracker.js';

export interface MlflowOptions {
  url: URL;
  /** Experiment of jobs without the label `mlflow.experiment`. */
  experiment: string;
  /** File with a token; empty for none. It is read for each call, so that a new token is used at once. */
  tokenFile: string;
  /** The specification of a job as clients see it. */
  specOf: (job: Job) => JobSpec;
  log: Logger;
}

interface State {
  runId: string;
  reached: Reached;
  /** Somebody deleted the run: nothing more is written. */
  isDeleted?: true;
}

interface Run {
  info: { run_id: string; lifecycle_stage?: string };
  data?: { tags?: { key: string; value: string }[] };
}

/** Error code of MLflow for something that does not exist. */
const absent = 'RESOURCE_DOES_NOT_EXIST';
const exists = 'RESOURCE_ALREADY_EXISTS';
/** MLflow takes 1000 values, parameters and tags together in one call, and one of them is the tag with the number of the last event. */
const pointsPerCall = 999;
/** MLflow's limit for parameters per call. */
const paramsMax = 100;
const paramLengthMax = 500;
const callMs = 30_000;
/** Tags that identify a run, and record up to which event it has the values. */
const [jobTag, createdTag, sequenceTag] = ['relora.job', 'relora.created', 'relora.sequence'];

/**
 * Writes to runs of MLflow through its HTTP API. The number of the last event is a tag that is sent in the same call as the values; after a
 * crash, or a call without an answer, it shows what has arrived. Times are those of the journal, so that MLflow recognizes a value that is
 * sent again.
 */
export class Mlflow implements Tracker {
  readonly name = 'mlflow';
  /** Jobs whose last call was answered; for others MLflow is asked what it has. */
  private readonly known = new Set<string>();

  constructor(private readonly options: MlflowOptions) {}

  async write(job: Job, events: readonly JobEvent[], stored: string, signal: AbortSignal): Promise<string> {
    const state: State = stored === '' ? { runId: '', reached: {} } : (JSON.parse(stored) as State);
    if (state.isDeleted) return stored;
    const runId = state.runId || (await this.runOf(job, signal));
    const isKnown = this.known.delete(job.id);
    const arrived = isKnown ? 0 : await this.sequenceOf(runId, signal);
    if (arrived === 'deleted') {
      this.options.log.warn(
        { jobId: job.id, runId },
        'A run of MLflow was deleted: no more is written to it',
      );
      return JSON.stringify({ ...state, runId, isDeleted: true } satisfies State);
    }
    let { reached } = state;
    let points: Point[] = [];
    let sequence = 0;
    const send = async (): Promise<void> => {
      if (points.length > 0)
        await this.call('POST', 'runs/log-batch', signal, {
          run_id: runId,
          metrics: points.map(({ key, value, step, timeMs }) => ({ key, value, step, timestamp: timeMs })),
          tags: [{ key: sequenceTag, value: String(sequence) }],
        });
      points = [];
    };
    for (const event of events) {
      const next = pointsOf(event, reached);
      ({ reached } = next);
      if (event.sequence <= arrived) continue;
      if (points.length + next.points.length > pointsPerCall) await send();
      for (const point of next.points) points.push(point);
      ({ sequence } = event);
    }
    await send();
    const end = events.find(({ final }) => final);
    if (end !== undefined)
      await this.call('POST', 'runs/update', signal, {
        run_id: runId,
        status: statusOf(job),
        end_time: end.timeMs,
      });
    else this.known.add(job.id);
    return JSON.stringify({ runId, reached } satisfies State);
  }

  /** The job's run; a call without an answer may have created it already. */
  private async runOf(job: Job, signal: AbortSignal): Promise<string> {
    const experiment = await this.experimentOf(
      job.labels['mlflow.experiment'] ?? this.options.experiment,
      signal,
    );
    const tags = [
      { key: jobTag, value: job.id },
      { key: createdTag, value: String(job.createTimeMs) },
      { key: 'mlflow.source.name', value: 'relora' },
      { key: 'relora.tenant', value: tenantOf(job.id) },
      ...Object.entries(job.labels).map(([key, value]) => ({ key: `relora.label.${key}`, value })),
    ];
    const found = (await this.call('POST', 'runs/search', signal, {
      experiment_ids: [experiment],
      filter: `tags.\`${jobTag}\` = '${job.id}' and tags.\`${createdTag}\` = '${job.createTimeMs}'`,
      max_results: 1,
    })) as { runs?: Run[] };
    const create = async (): Promise<Run> => {
      const made = (await this.call('POST', 'runs/create', signal, {
        experiment_id: experiment,
        run_name: job.displayName || nameOf(job.id),
        start_time: job.createTimeMs,
        tags,
      })) as { run: Run };
      return made.run;
    };
    const { run_id } = (found.runs?.[0] ?? (await create())).info;
    // Also for a run that was found: this call may have failed after the run was created. The same parameters may be sent again.
    await this.call('POST', 'runs/log-batch', signal, { run_id, params: paramsOf(this.options.specOf(job)) });
    return run_id;
  }

  private async experimentOf(name: string, signal: AbortSignal): Promise<string> {
    const find = async (): Promise<string | undefined> => {
      const path = `experiments/get-by-name?experiment_name=${encodeURIComponent(name)}`;
      const found = (await this.call('GET', path, signal, undefined, [absent])) as {
        experiment?: { experiment_id: string };
      };
      return found.experiment?.experiment_id;
    };
    const known = await find();
    if (known !== undefined) return known;
    const made = (await this.call('POST', 'experiments/create', signal, { name }, [exists])) as {
      experiment_id?: string;
    };
    const id = made.experiment_id ?? (await find());
    if (id === undefined) throw new Error(`MLflow has no experiment ${name}, and makes none`);
    return id;
  }

  /**
   * Number of the last event whose values the run has. Whether somebody deleted the run is seen here: the error of other calls has a code
   * that depends on MLflow's store, and that wrong values have, too.
   */
  private async sequenceOf(runId: string, signal: AbortSignal): Promise<number | 'deleted'> {
    const path = `runs/get?run_id=${encodeURIComponent(runId)}`;
    const answer = (await this.call('GET', path, signal, undefined, [absent])) as
      { error_code: string } | { run: Run };
    if ('error_code' in answer) return 'deleted';
    const { info, data } = answer.run;
    if (info.lifecycle_stage === 'deleted') return 'deleted';
    return Number(data?.tags?.find(({ key }) => key === sequenceTag)?.value ?? 0);
  }

  /** Rejects with MLflow's error, unless its code is in `tolerated`. */
  private async call(
    method: 'GET' | 'POST',
    path: string,
    signal: AbortSignal,
    body?: object,
    tolerated: readonly string[] = [],
  ): Promise<unknown> {
    const { url, tokenFile } = this.options;
    const token = tokenFile === '' ? '' : (await readFile(tokenFile, 'utf8')).trim();
    const base = url.href.replace(/\/?$/, '/');
    const response = await fetch(new URL(`api/2.0/mlflow/${path}`, base), {
      method,
      headers: {
        'content-type': 'application/json',
        ...(token === '' ? {} : { authorization: `Bearer ${token}` }),
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      redirect: 'error',
      signal: AbortSignal.any([signal, AbortSignal.timeout(callMs)]),
    });
    const text = await response.text();
    const answer = text.startsWith('{') ? (JSON.parse(text) as { error_code?: string }) : {};
    if (response.ok || tolerated.includes(answer.error_code ?? '')) return answer;
    throw new Error(`MLflow answered ${response.status} to ${path.split('?')[0]}: ${text.slice(0, 300)}`);
  }
}

function statusOf({ state }: Job): string {
  if (!isTerminal(state)) return 'RUNNING';
  return state === 'succeeded' ? 'FINISHED' : state === 'failed' ? 'FAILED' : 'KILLED';
}

/** The settings of a job, one parameter each, with their names in a run file. */
function paramsOf(spec: JobSpec): { key: string; value: string }[] {
  const params: { key: string; value: string }[] = [];
  const add = (value: unknown, key: string): void => {
    if (typeof value === 'object' && value !== null && !Array.isArray(value))
      for (const [name, inner] of Object.entries(value)) add(inner, key === '' ? name : `${key}.${name}`);
    else if (value !== null && value !== undefined)
      params.push({
        key,
        value: (Array.isArray(value) ? JSON.stringify(value) : String(value)).slice(0, paramLengthMax),
      });
  };
  add(JobSpec.toJSON(spec), '');
  return params.filter(({ value }) => value !== '' && value !== '[]').slice(0, paramsMax);
}
