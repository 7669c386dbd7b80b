import { createWriteStream } from 'node:fs';
import { mkdtemp, rename, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import type { Command } from 'commander';
import { UsageError } from './exitCodes.js';
import { bytes } from './format.js';
import { TarFiles, tarOf } from './jobTar.js';
import { jobName, type Run } from './session.js';

interface ExportFlags {
  output?: string;
  withData?: boolean;
}

/** Commands that move a whole job from one server to another. */
export function addJobArchiveCommands(program: Command, run: Run): void {
  const job = program.command('job').description('move a whole job to another server');
  job
    .command('export <job> [folder]')
    .description(
      'export an ended or paused job into a folder or a file, with specification, journal, checkpoints and artifacts',
    )
    .option('-o, --output <file>', 'a tar file instead of a folder; - for standard output')
    .option('--with-data', 'include the prepared data sets, for a server that does not have them')
    .action((name: string, folder: string | undefined, { output: file, withData = false }: ExportFlags) => {
      if ((folder === undefined) === (file === undefined))
        throw new UsageError('Give either a folder or --output');
      return run(async ({ client, output, signal }) => {
        const options = { signal, withDatasets: withData };
        if (folder !== undefined) {
          const archive = await client.exportJob(jobName(name), folder, options);
          return output.result(archive, () => [
            `${archive.job}: ${archive.files.length} files of ${bytes(archive.sizeBytes)} in ${folder}, each checked by its SHA-256.`,
          ]);
        }
        const tar = tarOf(client.exportJobFiles(jobName(name), options));
        if (file === '-') return await pipeline(tar, process.stdout, { end: false, signal });
        // Renamed at the end, so a file with the final name is complete.
        await pipeline(tar, createWriteStream(`${file}.part`), { signal });
        await rename(`${file}.part`, file!);
        const sizeBytes = (await stat(file!)).size;
        output.result({ job: jobName(name), file, sizeBytes }, () => [
          `${jobName(name)}: ${bytes(sizeBytes)} in ${file}, each file checked by its SHA-256.`,
        ]);
      });
    });
  job
    .command('import <folder>')
    .description('import an exported job from a folder or a tar file (- for standard input)')
    .option('--id <id>', 'id of the imported job; by default the one that it had')
    .action((from: string, { id }: { id?: string }) =>
      run(async ({ client, output, signal }) => {
        const options = { signal, ...(id !== undefined && { jobId: id }) };
        const found =
          from === '-'
            ? await withStandardInput(
                signal,
                async (file) => await client.importJob(await TarFiles.open(file), options),
              )
            : await client.importJob(
                (await stat(from)).isDirectory() ? from : await TarFiles.open(from),
                options,
              );
        output.result(found, () => [
          `${found.name} is imported from ${found.imported?.job ?? found.name}: ${found.state.replace('JOB_STATE_', '').toLowerCase()} at step ${found.progress?.step ?? 0}.`,
        ]);
      }),
    );
}

/** Copies standard input to a file, so that it can be read again if the connection breaks. */
async function withStandardInput<T>(signal: AbortSignal, use: (path: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(tmpdir(), 'relora-import-'));
  try {
    const path = join(folder, 'job.tar');
    await pipeline(process.stdin, createWriteStream(path), { signal });
    return await use(path);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
