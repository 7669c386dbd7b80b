import type { Command } from 'commander';
import { DatasetState, type Dataset, type GetDiskUseResponse, type ReloraClient } from '@relora/sdk';
import { exitCodes, UsageError } from './exitCodes.js';
import { bytes, duration, quantity, table } from './format.js';
import { label, type Run } from './session.js';

interface DeleteFlags {
  dryRun?: boolean;
  missingOk?: boolean;
}

/** Commands for what is on the server's disk: show, check, delete. */
export function addDiskCommands(program: Command, run: Run): void {
  program
    .command('datasets')
    .description('list data sets, newest first')
    .option('--deleted', 'also show deleted ones')
    .option('--label <key=value...>', 'only data sets with these labels', label)
    .option('--owner <name>', 'only those that this caller uploaded')
    .action((flags: { deleted?: boolean; label?: Record<string, string>; owner?: string }) =>
      run(async ({ client, output, signal }) => {
        const all: Dataset[] = [];
        const { deleted: showDeleted, label: labels, owner } = flags;
        for await (const dataset of client.listDatasets({ showDeleted, labels, owner, signal }))
          all.push(dataset);
        output.result({ datasets: all }, () =>
          all.length === 0
            ? ['No data sets.']
            : table([['NAME', 'STATE', 'TOKENS', 'HELD OUT', 'CREATED', 'TITLE'], ...all.map(rowOf)]),
        );
      }),
    );

  program
    .command('delete <names...>')
    .description('delete ended jobs, and data sets, datasets/…; `undelete` restores them')
    .option('--dry-run', 'delete nothing; only show what would be freed')
    .option('--missing-ok', 'it is no error if one does not exist')
    .action((names: string[], flags: DeleteFlags) =>
      run(async ({ client, output, signal }) => {
        let total = 0;
        for (const name of wholeNames(names)) {
          const result = await deleteOne(client, name, flags, signal);
          total += result.freedBytes;
          output.result({ name, ...result }, () => [deletedText(name, result, flags)]);
        }
        if (names.length > 1) output.note(`${bytes(total)} in all.`);
      }),
    );

  program
    .command('undelete <names...>')
    .description('restore deleted jobs and data sets that are not purged yet')
    .action((names: string[]) =>
      run(async ({ client, output, signal }) => {
        for (const name of wholeNames(names)) {
          const found =
            kindOf(name) === 'jobs'
              ? await client.undeleteJob(name, { signal })
              : await client.undeleteDataset(name, { signal });
          output.result(found, () => [`${name} is restored.`]);
        }
      }),
    );

  program
    .command('scrub [name]')
    .description(
      'check for damage: the server reads all files of a job, of datasets/… or weights/…, or everything, and compares them with their digests',
    )
    .action((name: string | undefined) =>
      run(async ({ client, output, signal }) => {
        let [fileCount, sizeBytes, damagedCount] = [0, 0, 0];
        for await (const file of client.scrub({
          name: name && wholeName(name),
          signal,
        })) {
          fileCount++;
          sizeBytes += file.sizeBytes;
          if (file.problem !== '') damagedCount++;
          output.result(file, () =>
            file.problem === '' ? [] : [`${file.name} ${file.fileName}: ${file.problem}`],
          );
        }
        output.note(`${fileCount} files with ${bytes(sizeBytes)} read, ${damagedCount} damaged.`);
        if (damagedCount > 0) process.exitCode = exitCodes.different;
      }),
    );
}

/** The sums, and the largest jobs, data sets and weights. */
export function diskLines(use: GetDiskUseResponse): string[] {
  const deleted = use.deletedBytes > 0 ? ` (${bytes(use.deletedBytes)} of it deleted, not purged yet)` : '';
  return [
    `Disk: jobs ${bytes(use.jobBytes)}, data sets ${bytes(use.datasetBytes)}, weights ${bytes(use.weightsBytes)}, ` +
      `store ${bytes(use.storeBytes)}${deleted}; ${bytes(use.freeBytes)} are free`,
    ...(use.entries.length === 0
      ? []
      : table([['LARGEST', 'SIZE', 'PURGED AT'], ...use.entries.map(entryRow)])),
  ];
}

/** A name without a slash is that of a job, as in every other command. */
function wholeName(name: string): string {
  return name.includes('/') ? name : `jobs/${name}`;
}

/** All names are checked before anything is done with the first. */
function wholeNames(names: readonly string[]): string[] {
  const whole = names.map(wholeName);
  for (const name of whole) kindOf(name);
  return whole;
}

function entryRow({ name, bytes: size, purgeTime }: GetDiskUseResponse['entries'][number]): string[] {
  return [name, bytes(size), purgeTime === undefined ? '' : purgeTime.toISOString()];
}

function kindOf(name: string): 'jobs' | 'datasets' {
  const kind = /^(jobs|datasets)\/[^/]+$/.exec(name)?.[1];
  if (kind === undefined) throw new UsageError(`${name}: expected a job, jobs/… or datasets/…`);
  return kind as 'jobs' | 'datasets';
}

async function deleteOne(
  client: ReloraClient,
  name: string,
  flags: DeleteFlags,
  signal: AbortSignal,
): Promise<{ purgeTime: Date | undefined; freedBytes: number }> {
  const options = { validateOnly: flags.dryRun, allowMissing: flags.missingOk, signal };
  if (kindOf(name) === 'jobs') {
    const { job, freedBytes } = await client.deleteJob(name, options);
    return { purgeTime: job?.purgeTime, freedBytes };
  }
  const { dataset, freedBytes } = await client.deleteDataset(name, options);
  return { purgeTime: dataset?.purgeTime, freedBytes };
}

function deletedText(
  name: string,
  { purgeTime, freedBytes }: { purgeTime: Date | undefined; freedBytes: number },
  { dryRun }: DeleteFlags,
): string {
  if (dryRun) return `${name} can be deleted: ${bytes(freedBytes)} would be freed.`;
  if (purgeTime === undefined) return `${name} does not exist.`;
  return `${name} is deleted. Its ${bytes(freedBytes)} are freed at ${purgeTime.toISOString()}; until then \`relora undelete ${name}\` restores it.`;
}

/** For example: PREPARING 42 %, 3 min left at 4 MB/s */
function stateText(dataset: Dataset): string {
  const { state, preparedRatio, preparedBytesPerSecond: rate, preparationRemainingSeconds: left } = dataset;
  const word = state.slice('DATASET_STATE_'.length);
  if (state !== DatasetState.PREPARING) return word;
  const rest = rate === undefined || left === undefined ? '' : `, ${duration(left)} left at ${bytes(rate)}/s`;
  return `${word} ${Math.round(100 * preparedRatio)} %${rest}`;
}

function rowOf(dataset: Dataset): string[] {
  const { name, state, train, heldOut, createTime, displayName, deleteTime } = dataset;
  const word = state === DatasetState.FAILED ? `FAILED ${dataset.failure?.reason ?? ''}` : stateText(dataset);
  return [
    name,
    deleteTime === undefined ? word : 'DELETED',
    train === undefined ? '' : quantity(train.tokenCount),
    heldOut === undefined ? '' : quantity(heldOut.tokenCount),
    createTime?.toISOString().slice(0, 16).replace('T', ' ') ?? '',
    displayName,
  ];
}
