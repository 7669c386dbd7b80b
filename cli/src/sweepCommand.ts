import { randomUUID } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import type { Command } from 'commander';
import type { JobKind, RateGrid, SweepRun } from '@relora/sdk';
import { terminalView } from './compareCommand.js';
import { UsageError } from './exitCodes.js';
import { label, type Run } from './session.js';
import { sweepReport } from './report/sweepReport.js';
import {
  addSpecOptions,
  decimalNumber,
  decimalNumbers,
  kindList,
  positiveNumber,
  readSpec,
  wholeNumbers,
  type SpecFlags,
} from './specOptions.js';
import { rateText, sweepText, variantLabel } from './sweepText.js';

interface SweepFlags extends SpecFlags {
  rates?: number[];
  from?: number;
  to?: number;
  count?: number;
  kinds?: JobKind[];
  ranks?: number[];
  scales?: number[];
  id?: string;
  label?: Record<string, string>;
  html?: string;
}

export function addSweepCommand(program: Command, run: Run): void {
  addSpecOptions(
    program
      .command('sweep')
      .description(
        'find the best learning rate: run short jobs over a grid of rates and compare their held-out losses',
      ),
  )
    .option('--rates <rates>', 'learning rates to try, for example 3e-4,1e-3,3e-3', decimalNumbers)
    .option('--from <rate>', 'lowest learning rate to try, instead of --rates', decimalNumber)
    .option('--to <rate>', 'highest learning rate to try', decimalNumber)
    .option(
      '--count <n>',
      'number of learning rates from --from to --to, with equal ratios; by default 5',
      positiveNumber,
    )
    .option('--kinds <kinds>', 'try each rate with each of these kinds', kindList)
    .option('--ranks <ranks>', 'try each rate with each of these ranks', wholeNumbers)
    .option('--scales <scales>', 'try each rate with each of these scales, alpha / rank', decimalNumbers)
    .option('--id <id>', 'id of the sweep; with the same id a repeated command continues with the same jobs')
    .option('--label <key=value...>', 'labels of the jobs, in addition to sweep=<id>', label)
    .option('--html <file>', 'write a page with chart and table')
    .addHelpText(
      'after',
      '\nCtrl-C leaves the jobs in the queue; the same command with the same --id continues to show them.',
    )
    .action((flags: SweepFlags) =>
      run(async ({ client, output, signal }) => {
        const { kinds, ranks, scales, id = randomUUID().slice(0, 8), label: labels } = flags;
        output.note(`Sweep ${id}: to continue it later, repeat the command with --id ${id}.`);
        const onRun = (tried: SweepRun) => output.note(progressText(tried));
        const sweep = await client.sweepLearningRate(await readSpec(flags), {
          ...gridOf(flags),
          ...(kinds === undefined ? {} : { kinds }),
          ...(ranks === undefined ? {} : { ranks }),
          ...(scales === undefined ? {} : { scales }),
          id,
          ...(labels === undefined ? {} : { labels }),
          onRun,
          signal,
        });
        if (flags.html !== undefined) await writeFile(flags.html, sweepReport(sweep, new Date()));
        output.drawing(sweep, () => sweepText(sweep, terminalView()));
        if (flags.html !== undefined) output.note(`The report is in ${flags.html}.`);
      }),
    );
}

function gridOf({ rates, from, to, count = 5, lr }: SweepFlags): RateGrid {
  if (lr !== undefined)
    throw new UsageError(
      'A sweep tries several learning rates: use --rates, or --from and --to, instead of --lr',
    );
  if (rates !== undefined) {
    if (from !== undefined || to !== undefined)
      throw new UsageError('--rates and --from cannot be used together');
    return { rates };
  }
  if (from === undefined || to === undefined)
    throw new UsageError('A sweep needs --rates, or --from and --to');
  return { from, to, count };
}

function progressText(run: SweepRun): string {
  const { job, learningRate, outcome, evaluationLoss } = run;
  const loss = evaluationLoss === null ? '' : `, held-out loss ${evaluationLoss.toFixed(4)}`;
  return `${job.name}: ${variantLabel(run)}, rate ${rateText(learningRate)}: ${outcome}${loss}`;
}
