import type { Command } from 'commander';
import { JobState, type Job } from '@relora/sdk';
import { documentsText } from './documentsText.js';
import { estimateText, explanationText, jobDetails, jobTable, stateText } from './jobText.js';
import { addJobArchiveCommands } from './jobArchiveCommands.js';
import { jobName, label, type Run } from './session.js';
import { addLogsCommand } from './logsCommand.js';
import { addSetCommand } from './setCommand.js';
import {
  addSpecOptions,
  oneOf,
  positiveNumber,
  readSpec,
  wholeNumber,
  type SpecFlags,
} from './specOptions.js';

/** Commands that show and control jobs. */
export function addJobCommands(program: Command, run: Run): void {
  addSpecOptions(
    program
      .command('estimate')
      .description('show the memory, time and disk that a job would need; nothing is stored'),
  ).action((flags: SpecFlags) =>
    run(async ({ client, output, signal }) => {
      const response = await client.estimateJob(await readSpec(flags), { signal });
      output.result(response, () => estimateText(response));
    }),
  );

  addList(program, run);

  program
    .command('describe <job>')
    .description('show everything about a job')
    .action((job: string) =>
      run(async ({ client, output, signal }) => {
        const found = await client.getJob(jobName(job), { signal });
        output.result(found, () => jobDetails(found));
      }),
    );

  program
    .command('explain <job>')
    .description(
      'explain why a job waits, what may end it, or why it ended; or which documents caused the loss of a step',
    )
    .option('--step <n>', 'list the documents that added most to the loss of this step', wholeNumber)
    .action((job: string, { step }: { step?: number }) =>
      run(async ({ client, output, signal }) => {
        const found = await client.explainJob(jobName(job), { signal, ...(step !== undefined && { step }) });
        output.result(found, () =>
          step === undefined ? explanationText(found) : documentsText(jobName(job), step, found),
        );
      }),
    );

  addControl(program, run, 'pause', 'save a checkpoint and stop a job until it is resumed');
  addControl(program, run, 'resume', 'put a paused job back into the queue');
  addControl(program, run, 'cancel', 'end a job for good');
  addJobArchiveCommands(program, run);
  addSetCommand(program, run);
  addLogsCommand(program, run);
}

function addList(program: Command, run: Run): void {
  program
    .command('list')
    .description('list jobs, newest first')
    .option('--state <state...>', 'only jobs in these states, for example running')
    .option('--label <key=value...>', 'only jobs with these labels', label)
    .option('--deleted', 'also show deleted ones')
    .option('--limit <n>', 'largest number of jobs to list', positiveNumber, 50)
    .action((flags: ListFlags) =>
      run(async ({ client, output, signal }) => {
        const jobs: Job[] = [];
        const states = flags.state?.map(parseState);
        for await (const job of client.listJobs({
          states,
          labels: flags.label,
          showDeleted: flags.deleted,
          pageSize: Math.min(500, flags.limit),
          signal,
        })) {
          jobs.push(job);
          if (jobs.length >= flags.limit) break;
        }
        output.result({ jobs }, () => jobTable(jobs));
      }),
    );
}

interface ListFlags {
  state?: string[];
  label?: Record<string, string>;
  deleted?: boolean;
  limit: number;
}

function addControl(
  program: Command,
  run: Run,
  verb: 'pause' | 'resume' | 'cancel',
  description: string,
): void {
  program
    .command(`${verb} <job>`)
    .description(description)
    .option('--request-id <uuid>', 'UUID; a repeated command with the same UUID takes effect once')
    .action((job: string, { requestId }: { requestId?: string }) =>
      run(async ({ client, output, signal }) => {
        const after = await client[`${verb}Job`](jobName(job), {
          signal,
          ...(requestId === undefined ? {} : { requestId }),
        });
        output.result(after, () => [`${after.name} is ${stateText(after)}.`]);
      }),
    );
}

function parseState(name: string): JobState {
  const { UNSPECIFIED: _1, UNRECOGNIZED: _2, ...states } = JobState;
  const byName = Object.entries(states).map(([key, state]) => [key.toLowerCase(), state] as const);
  return oneOf('--state', name.toLowerCase(), Object.fromEntries(byName));
}
