import { InvalidArgumentError, type Command } from 'commander';
import { JobState, isTerminal, type Job, type JobKind, type JobEvent, type ReloraClient } from '@relora/sdk';
import { LiveView } from './liveView.js';
import { UsageError } from './exitCodes.js';
import { bytes } from './format.js';
import { estimateText, jobDetails, jobTable, stateText } from './jobText.js';
import type { Output } from './output.js';
import {
  addSpecOptions,
  kindList,
  oneOf,
  positiveNumber,
  readSpec,
  wholeNumber,
  wholeNumbers,
  type SpecFlags,
} from './specOptions.js';

/** What every command works with. */
export interface Session {
  client: ReloraClient;
  output: Output;
  /** Aborted by Ctrl-C. */
  signal: AbortSignal;
}

/** Runs a command's body with a connection, and ends the process with the right code. */
export type Run = (body: (session: Session) => Promise<void>) => Promise<void>;

interface CreateFlags extends SpecFlags {
  title?: string;
  id?: string;
  label?: Record<string, string>;
  requestId?: string;
  validateOnly?: boolean;
}

interface ComparisonFlags {
  kinds?: JobKind[];
  seeds?: number[];
  comparison?: string;
}

export function addJobCommands(program: Command, run: Run): void {
  addSpecOptions(program.command('create').description('store a job and queue it'))
    .option('--title <text>', 'title for people')
    .option('--id <id>', 'id to use, by default made by the server')
    .option('--label <key=value...>', 'labels to find the job by', label)
    .option('--request-id <uuid>', 'makes a repeated command return the same job')
    .option('--validate-only', 'check everything, store nothing')
    .option('--kinds <kinds>', 'the same training by each of these kinds, to be compared', kindList)
    .option('--seeds <seeds>', 'and with each of these seeds, for example 1,2,3', wholeNumbers)
    .option('--comparison <id>', 'id of the comparison; repeated, it returns the same jobs')
    .action((flags: CreateFlags & ComparisonFlags) =>
      run(async (session) => {
        const isComparison = flags.kinds !== undefined || flags.seeds !== undefined;
        if (isComparison) await createComparison(session, flags);
        else await create(session, flags);
      }),
    );

  addSpecOptions(
    program
      .command('run')
      .description('create a job, watch it and download its weights: upload files with --file'),
  )
    .option('--id <id>', 'id to use, by default made by the server')
    .option('--title <text>', 'title for people')
    .option('--label <key=value...>', 'labels to find the job by', label)
    .option('--file <path...>', 'text, JSONL or Parquet to upload as the data set')
    .option(
      '--vocabulary <n>',
      'train a BPE vocabulary of this size on the files; by default bytes are tokens',
      wholeNumber,
    )
    .option('--output <folder>', 'where the weights go', 'relora-output')
    .addHelpText('after', '\nCtrl-C leaves the job running; the command to come back is printed.')
    .action((flags: CreateFlags & { file?: string[]; vocabulary?: number; output: string }) =>
      run(async (session) => {
        const { client, output, signal } = session;
        if (flags.file !== undefined) {
          output.note('Uploading and preparing …');
          const spec =
            flags.vocabulary === undefined
              ? {}
              : { tokenizer: { trainedBpe: { vocabularySize: flags.vocabulary } } };
          const dataset = await client.uploadDataset({
            files: flags.file.map((path) => ({ path })),
            spec,
            signal,
          });
          flags.dataset = dataset.name;
        }
        const job = await create(session, flags);
        if (job === undefined) return;
        await watch(session, job.name, 0);
        const paths = await client.downloadArtifact(job.name, flags.output, { signal });
        output.result({ paths }, () => [
          `Weights are in ${flags.output}: ${paths.length} files, SHA-256 verified.`,
        ]);
      }),
    );

  addSpecOptions(
    program.command('estimate').description('say what a job would cost; nothing is stored'),
  ).action((flags: SpecFlags) =>
    run(async ({ client, output, signal }) => {
      const response = await client.estimateJob(await readSpec(flags), { signal });
      output.result(response, () => estimateText(response));
    }),
  );

  program
    .command('watch <job>')
    .description('show a job while it trains; Ctrl-C leaves it running')
    .option('--after <sequence>', 'events with a higher number only', wholeNumber, 0)
    .action((job: string, flags: { after: number }) =>
      run(async (session) => await watch(session, jobName(job), flags.after)),
    );

  program
    .command('list')
    .description('show jobs, newest first')
    .option('--state <state...>', 'only these states, for example running')
    .option('--label <key=value...>', 'only jobs with these labels', label)
    .option('--limit <n>', 'at most so many, from 1', positiveNumber, 50)
    .action((flags: { state?: string[]; label?: Record<string, string>; limit: number }) =>
      run(async ({ client, output, signal }) => {
        const jobs: Job[] = [];
        const states = flags.state?.map(parseState);
        for await (const job of client.listJobs({
          states,
          labels: flags.label,
          pageSize: Math.min(500, flags.limit),
          signal,
        })) {
          jobs.push(job);
          if (jobs.length >= flags.limit) break;
        }
        output.result({ jobs }, () => jobTable(jobs));
      }),
    );

  program
    .command('describe <job>')
    .description('show everything about a job')
    .action((job: string) =>
      run(async ({ client, output, signal }) => {
        const found = await client.getJob(jobName(job), { signal });
        output.result(found, () => jobDetails(found));
      }),
    );

  addSpecOptions(
    program
      .command('fork <job>')
      .alias('restart') // its name in 0.1.0
      .description(
        'make a new job that begins at a checkpoint of an ended one, with the settings that are given',
      ),
  )
    .option('--checkpoint-step <n>', 'checkpoint to begin at, by default the newest', wholeNumber)
    .option('--title <text>', 'title for people, by default that of the ended job')
    .option('--id <id>', 'id to use, by default made by the server')
    .option('--label <key=value...>', 'labels to find the job by', label)
    .option('--request-id <uuid>', 'makes a repeated command return the same job')
    .action((name: string, flags: CreateFlags & { checkpointStep?: number }) =>
      run(async ({ client, output, signal }) => {
        const job = await client.forkJob(jobName(name), await readSpec(flags), {
          ...namingOf(flags),
          checkpointStep: flags.checkpointStep,
          signal,
        });
        output.result(job, () => [
          `${job.name} is ${stateText(job)} and begins at step ${job.origin?.step} of ${job.origin?.job}.`,
        ]);
      }),
    );

  const control = (verb: 'pause' | 'resume' | 'cancel', description: string) =>
    program
      .command(`${verb} <job>`)
      .description(description)
      .option('--request-id <uuid>', 'makes a repeated command safe')
      .action((job: string, { requestId }: { requestId?: string }) =>
        run(async ({ client, output, signal }) => {
          const after = await client[`${verb}Job`](jobName(job), {
            signal,
            ...(requestId === undefined ? {} : { requestId }),
          });
          output.result(after, () => [`${after.name} is ${stateText(after)}.`]);
        }),
      );
  control('pause', 'stop a job with a checkpoint');
  control('resume', 'put a paused job back into the queue');
  control('cancel', 'end a job for good');
}

function namingOf(flags: CreateFlags) {
  return {
    displayName: flags.title,
    jobId: flags.id,
    labels: flags.label,
    ...(flags.requestId === undefined ? {} : { requestId: flags.requestId }),
  };
}

/** Undefined when nothing was stored. */
async function create({ client, output, signal }: Session, flags: CreateFlags): Promise<Job | undefined> {
  const spec = await readSpec(flags);
  const options = { ...namingOf(flags), signal };
  if (flags.validateOnly) {
    const response = await client.validateJob(spec, options);
    output.result(response, () => [
      'The job is valid.',
      ...estimateText({ ...response, spec: response.job?.spec }),
    ]);
    return undefined;
  }
  const job = await client.createJob(spec, options);
  output.result(job, () => [`${job.name} is ${stateText(job)}.`]);
  return job;
}

/** Queues a job for every kind and seed. */
async function createComparison(
  { client, output, signal }: Session,
  flags: CreateFlags & ComparisonFlags,
): Promise<void> {
  for (const flag of ['id', 'title', 'requestId', 'validateOnly'] as const)
    if (flags[flag] !== undefined)
      throw new UsageError('--kinds and --seeds make several jobs: name them with --label or --comparison');
  const { kinds, seeds, label: labels } = flags;
  const { id, jobs } = await client.createComparison(await readSpec(flags), {
    ...(flags.comparison === undefined ? {} : { id: flags.comparison }),
    ...(kinds === undefined ? {} : { kinds }),
    ...(seeds === undefined ? {} : { seeds }),
    ...(labels === undefined ? {} : { labels }),
    signal,
  });
  output.result({ id, jobs }, () => [
    ...jobs.map((job) => `${job.name} is ${stateText(job)}: ${job.displayName}`),
    `To compare them, at any time: relora compare --label comparison=${id}`,
  ]);
}

/** Shows events until the final one; throws JobFailedError, which decides the exit code, unless the job succeeded. */
async function watch(
  { client, output, signal }: Session,
  name: string,
  afterSequence: number,
): Promise<void> {
  const job = await client.getJob(name, { signal });
  const view = output.isJson
    ? undefined
    : new LiveView(process.stdout, {
        title: job.displayName ? `${name} ${job.displayName}` : name,
        stepCount: stepCountOf(job),
      });
  output.isDrawnOver = view !== undefined && process.stdout.isTTY === true;
  try {
    const onEvent = (event: JobEvent) => {
      if (view === undefined) output.result(event, () => []);
      else view.update(event);
    };
    await client.waitForJob(name, { afterSequence, signal, onEvent });
  } finally {
    view?.close();
    output.isDrawnOver = false;
    if (signal.aborted && !isTerminal(job.state))
      output.note(`${name} goes on. To come back: relora watch ${name}`);
  }
}

/** Steps of all phases; 0 while the server has not said. */
function stepCountOf({ progress, spec }: Job): number {
  return progress?.stepCount || (spec?.stepCount ?? 0) + (spec?.warmStart?.stepCount ?? 0);
}

export function jobName(name: string): string {
  return name.startsWith('jobs/') ? name : `jobs/${name}`;
}

export function label(value: string, previous: Record<string, string> = {}): Record<string, string> {
  const separator = value.indexOf('=');
  if (separator <= 0) throw new InvalidArgumentError('Labels are key=value.');
  return { ...previous, [value.slice(0, separator)]: value.slice(separator + 1) };
}

function parseState(name: string): JobState {
  const { UNSPECIFIED: _1, UNRECOGNIZED: _2, ...states } = JobState;
  const byName = Object.entries(states).map(([key, state]) => [key.toLowerCase(), state] as const);
  return oneOf('--state', name.toLowerCase(), Object.fromEntries(byName));
}

/** Bytes and files of a download, for people. */
export function downloadText(paths: readonly string[], sizeBytes: number): string {
  return `${paths.length} files, ${bytes(sizeBytes)}, SHA-256 verified:`;
}
