import type { Command } from 'commander';
import { jobName, type Run } from './session.js';
import { positiveNumber } from './specOptions.js';

/** Shows what the trainers of a job printed. */
export function addLogsCommand(program: Command, run: Run): void {
  program
    .command('logs <job>')
    .description('show what the trainers of a job printed')
    .option('--attempt <n>', 'only the output of this attempt, from 1', positiveNumber)
    .option('-f, --follow', 'continue to show new output until the job has ended')
    .action((job: string, { attempt, follow }: { attempt?: number; follow?: boolean }) =>
      run(async ({ client, output, signal }) => {
        const wish = { signal, ...(attempt && { attempt }), ...(follow && { follow }) };
        let before = 0;
        for await (const line of client.jobLog(jobName(job), wish)) {
          const heading = line.attempt === before ? [] : [`Attempt ${line.attempt}:`];
          before = line.attempt;
          output.result(line, () => [...heading, `${line.time?.toISOString() ?? ''}  ${line.text}`]);
        }
      }),
    );
}
