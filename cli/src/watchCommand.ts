import type { Command } from 'commander';
import { isTerminal, type Job, type JobEvent } from '@relora/sdk';
import { LiveView } from './liveView.js';
import { jobName, type Run, type Session } from './session.js';
import { wholeNumber } from './specOptions.js';

export function addWatchCommand(program: Command, run: Run): void {
  program
    .command('watch <job>')
    .description('show a job while it trains; Ctrl-C leaves it running')
    .option('--after <sequence>', 'events with a higher number only', wholeNumber, 0)
    .action((job: string, flags: { after: number }) =>
      run(async (session) => await watchJob(session, jobName(job), flags.after)),
    );
}

/** Shows events until the final one; throws JobFailedError, which decides the exit code, unless the job succeeded. */
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
      output.note(`${name} keeps running. To come back: relora watch ${name}`);
  }
}

/** Steps of all phases; 0 while the server has not said. */
function stepCountOf({ progress, spec }: Job): number {
  return progress?.stepCount || (spec?.stepCount ?? 0) + (spec?.warmStart?.stepCount ?? 0);
}
