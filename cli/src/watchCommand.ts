import type { Command } from 'commander';
import { isTerminal, JobFailedError, JobState, type Job, type JobEvent } from '@relora/sdk';
import { UsageError } from './exitCodes.js';
import { LiveView } from './liveView.js';
import { jobName, label, type Run, type Session } from './session.js';
import { wholeNumber } from './specOptions.js';

export function addWatchCommand(program: Command, run: Run): void {
  program
    .command('watch [job...]')
    .description('follow jobs while they train; Ctrl-C leaves them running')
    .option('--after <sequence>', 'only events with a higher number; for a single job', wholeNumber)
    .option('--label <key=value...>', 'follow all jobs with these labels', label)
    .option('--new', 'only what happens from now on, until Ctrl-C; for several jobs')
    .action((jobs: string[], flags: WatchFlags) =>
      run(async (session) => {
        const names = jobs.map(jobName);
        if (names.length === 1 && flags.label === undefined && !flags.new)
          return await watchJob(session, names[0]!, flags.after ?? 0);
        if (names.length === 0 && flags.label === undefined && !flags.new)
          throw new UsageError('Name one or more jobs, or use --label, or --new for everything that happens');
        if (flags.after !== undefined) throw new UsageError('--after can only be used with a single job');
        await watchManyJobs(session, names, flags);
      }),
    );
}

interface WatchFlags {
  after?: number;
  label?: Record<string, string>;
  new?: boolean;
}

/**
 * Prints the events of several jobs as they arrive, each with its job, until all have ended; throws JobFailedError unless all succeeded.
 */
async function watchManyJobs(
  { client, output, signal }: Session,
  names: readonly string[],
  { label: labels, new: isNew = false }: WatchFlags,
): Promise<void> {
  const views = new Map<string, LiveView>();
  const failed: string[] = [];
  const options = { names, labels, skipPast: isNew, untilAllEnded: !isNew, signal };
  for await (const event of client.watchJobs(options)) {
    const { job } = event;
    if (event.final && event.kind === 'state' && event.state.to !== JobState.SUCCEEDED) failed.push(job);
    if (event.kind === 'storeChanged') {
      output.note(`${event.storeChanged.message}: these are the jobs as they are now`);
      views.clear();
      failed.length = 0;
    }
    if (output.isJson) output.result(event, () => []);
    if (output.isJson || event.kind === 'storeChanged') continue;
    let view = views.get(job);
    if (view === undefined) {
      const write = (text: string): boolean => process.stdout.write(`${job}  ${text}`);
      const stepCount = stepCountOf(await client.getJob(job, { signal }));
      view = new LiveView({ write }, { title: job, stepCount });
      views.set(job, view);
    }
    view.update(event);
    if (event.final) views.delete(job);
  }
  if (failed.length === 0) return;
  const message = `${failed.length} of the jobs failed or were cancelled: ${failed.join(', ')}`;
  throw new JobFailedError(message, { code: 'FAILED_PRECONDITION', reason: '' });
}

/** Shows events up to the final one; throws JobFailedError, which determines the exit code, unless the job succeeded. */
export async function watchJob(
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
      output.note(`${name} keeps running. To watch it again: relora watch ${name}`);
  }
}

/** Steps of all phases; 0 while unknown. */
function stepCountOf({ progress, spec }: Job): number {
  return progress?.stepCount || (spec?.stepCount ?? 0) + (spec?.warmStart?.stepCount ?? 0);
}
