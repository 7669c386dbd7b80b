import { createServer, type RequestListener } from 'node:http';
import type { AddressInfo } from 'node:net';
import { json } from 'node:stream/consumers';
import { onTestFinished } from 'vitest';

/** A local server, closed after the test. */
export async function serve(listener: RequestListener): Promise<URL> {
  const server = createServer(listener);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return new URL(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
}

interface Pair {
  key: string;
  value: string;
}

export interface Run {
  info: { run_id: string; lifecycle_stage: 'active' | 'deleted'; status: string };
  data: { metrics: { key: string; value: number; step: number }[]; params: Pair[]; tags: Pair[] };
}

interface Asked extends Partial<Run['data']> {
  run_id: string;
  name: string;
  status: string;
  filter: string;
}

/** An answer with an error, as MLflow gives it. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    readonly error_code: string,
    message: string,
  ) {
    super(message);
  }
}

const wrong = (message: string): Refused => new Refused(400, 'INVALID_PARAMETER_VALUE', message);
const absent = (what: string): Refused => new Refused(404, 'RESOURCE_DOES_NOT_EXIST', `No ${what}`);

/** What Mlflow uses of MLflow's API, with the refusals of its database store. */
export async function startMlflow(): Promise<{
  url: URL;
  runs: Run[];
  /** Paths of the calls that it got, in order. */
  calls: string[];
  /** Paths of calls that it fails to answer, each once. */
  failing: Set<string>;
}> {
  const experiments: string[] = [];
  const runs: Run[] = [];
  const calls: string[] = [];
  const failing = new Set<string>();
  const runOf = (id: string): Run => {
    const run = runs.find(({ info }) => info.run_id === id);
    if (run === undefined) throw absent(`run ${id}`);
    return run;
  };
  const activeRun = (id: string): Run => {
    const run = runOf(id);
    const { lifecycle_stage: stage } = run.info;
    if (stage !== 'active')
      throw wrong(`The run ${id} must be in the 'active' state. Current state is ${stage}.`);
    return run;
  };
  const answers: Record<string, (asked: Asked) => object> = {
    'experiments/get-by-name': ({ name }) => {
      if (!experiments.includes(name)) throw absent(`experiment ${name}`);
      return { experiment: { experiment_id: name } };
    },
    'experiments/create': ({ name }) => {
      experiments.push(name);
      return { experiment_id: name };
    },
    'runs/search': ({ filter }) => {
      const wanted = [...filter.matchAll(/tags\.`([^`]+)` = '([^']*)'/g)];
      const has = ({ data }: Run): boolean =>
        wanted.every(([, key, value]) => data.tags.some((tag) => tag.key === key && tag.value === value));
      return { runs: runs.filter((run) => run.info.lifecycle_stage === 'active' && has(run)) };
    },
    'runs/create': ({ tags = [] }) => {
      const info = { run_id: `run-${runs.length}`, lifecycle_stage: 'active' as const, status: 'RUNNING' };
      const run = { info, data: { metrics: [], params: [], tags } };
      runs.push(run);
      return { run };
    },
    'runs/get': ({ run_id }) => ({ run: runOf(run_id) }),
    'runs/log-batch': ({ run_id, metrics = [], params = [], tags = [] }) => {
      const limit = (name: string, count: number, most: number): void => {
        if (count > most)
          throw wrong(`A batch logging request can contain at most ${most} ${name}. Got ${count} ${name}.`);
      };
      limit('metrics', metrics.length, 1000);
      limit('params', params.length, 100);
      limit('tags', tags.length, 100);
      limit('metrics, params, and tags', metrics.length + params.length + tags.length, 1000);
      const { data } = activeRun(run_id);
      for (const { key, value } of params)
        if ((data.params.find((param) => param.key === key)?.value ?? value) !== value)
          throw wrong(`Changing param values is not allowed. Param with key='${key}' was already logged.`);
      data.metrics.push(...metrics);
      data.params.push(...params.filter(({ key }) => !data.params.some((param) => param.key === key)));
      data.tags = [...data.tags.filter(({ key }) => !tags.some((tag) => tag.key === key)), ...tags];
      return {};
    },
    'runs/update': ({ run_id, status }) => {
      activeRun(run_id).info.status = status;
      return {};
    },
  };
  const url = await serve((request, response) => {
    void (async () => {
      const { pathname, searchParams } = new URL(request.url!, 'http://host');
      const path = pathname.replace('/api/2.0/mlflow/', '');
      const asked = (
        request.method === 'POST'
          ? await json(request)
          : { run_id: searchParams.get('run_id'), name: searchParams.get('experiment_name') }
      ) as Asked;
      calls.push(path);
      try {
        if (failing.delete(path)) throw new Refused(500, 'INTERNAL_ERROR', 'Out of order');
        response.end(JSON.stringify(answers[path]!(asked)));
      } catch (error) {
        const { status, error_code, message } = error as Refused;
        response.writeHead(status).end(JSON.stringify({ error_code, message }));
      }
    })();
  });
  return { url, runs, calls, failing };
}
