import { writeFile } from 'node:fs/promises';
import { Option, type Command } from 'commander';
import type { ReloraClient } from '@relora/sdk';
import { comparisonText } from './comparisonText.js';
import { UsageError } from './exitCodes.js';
import { jobName, label, type Run } from './session.js';
import { plotAxes, plotMetrics, type PlotAxis, type PlotMetric } from './plottedMetrics.js';
import { comparisonReport, reportMetrics } from './report/comparisonReport.js';

interface CompareFlags {
  label?: Record<string, string>;
  reference?: string;
  metric: PlotMetric;
  axis: PlotAxis;
  html?: string;
}

/** Most jobs in a comparison; the server has its own limit. */
const jobsMax = 64;
/** Points per curve: more than a terminal or a chart has columns would not be visible. */
const pointsMax = 240;

export function addCompareCommand(program: Command, run: Run): void {
  program
    .command('compare [jobs...]')
    .description('compare jobs, also running ones: curves, a table, and the settings that differ')
    .option('--label <key=value...>', 'compare all jobs with these labels instead of naming jobs', label)
    .option('--reference <job>', 'job to compare with; by default the first full-rank job')
    .addOption(
      new Option('--metric <metric>', 'metric of the curves in the terminal')
        .choices(Object.keys(plotMetrics))
        .default('held-out'),
    )
    .addOption(
      new Option('--axis <axis>', 'horizontal axis of the curves')
        .choices(Object.keys(plotAxes))
        .default('tokens'),
    )
    .option('--html <file>', 'also write a page with charts and tables to this file')
    .action((jobs: string[], flags: CompareFlags) =>
      run(async ({ client, output, signal }) => {
        const names =
          flags.label === undefined ? jobs.map(jobName) : await withLabels(client, flags.label, signal);
        if (flags.label !== undefined && jobs.length > 0)
          throw new UsageError('Give either names of jobs or --label, not both');
        const comparison = await client.compareJobs(names, {
          reference: flags.reference === undefined ? '' : jobName(flags.reference),
          metrics: [plotMetrics[flags.metric].metric, ...reportMetrics],
          pointsMax,
          signal,
        });
        if (flags.html !== undefined) await writeFile(flags.html, comparisonReport(comparison, new Date()));
        output.drawing(comparison, () => comparisonText(comparison, { ...flags, ...terminalView() }));
        if (flags.html !== undefined) output.note(`The report is in ${flags.html}.`);
      }),
    );
}

/** Size and colors of drawings on standard output. */
export function terminalView() {
  const { columns = 100, rows = 40, isTTY } = process.stdout;
  return {
    width: Math.min(160, columns - 1),
    height: Math.min(24, Math.max(10, rows >> 1)),
    isColored: isTTY && !process.env.NO_COLOR,
  };
}

async function withLabels(
  client: ReloraClient,
  labels: Record<string, string>,
  signal: AbortSignal,
): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of client.listJobs({ labels, orderBy: 'create_time', signal })) {
    names.push(name);
    if (names.length > jobsMax)
      throw new UsageError(`More than ${jobsMax} jobs have these labels: add another label`);
  }
  if (names.length < 2)
    throw new UsageError(`At least two jobs must have these labels; ${names.length} have`);
  return names;
}
