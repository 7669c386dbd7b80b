import type { Command } from 'commander';
import { JobKind, type Job, type JobSpec } from '@relora/sdk';
import { UsageError } from './exitCodes.js';
import { estimateText, stateText } from './jobText.js';
import { readRunFile } from './runFile.js';
import { jobName, label, type Run, type Session } from './session.js';
import {
  addSpecOptions,
  kindList,
  readSpec,
  wholeNumber,
  wholeNumbers,
  type SpecFlags,
} from './specOptions.js';
import { watchJob } from './watchCommand.js';

interface CreateFlags extends SpecFlags {
  title?: string;
  id?: string;
  label?: Record<string, string>;
  requestId?: string;
  validateOnly?: boolean;
}

interface ForkFlags extends CreateFlags {
  checkpointStep?: number;
  omitDocumentsOfStep?: number;
}

interface ComparisonFlags {
  kinds?: JobKind[];
  seeds?: number[];
  comparison?: string;
}

/** Commands that create jobs. */
export function addCreateCommands(program: Command, run: Run): void {
  addCreate(program, run);
  addRun(program, run);
  addFork(program, run);
}

function addCreate(program: Command, run: Run): void {
  addSpecOptions(program.command('create').description('create a job and queue it'))
    .option('--title <text>', 'title, shown instead of the id')
    .option('--id <id>', 'id; by default the server chooses one')
    .option('--label <key=value...>', 'labels to find the job by', label)
    .option('--request-id <uuid>', 'UUID; a repeated command with the same UUID returns the same job')
    .option('--validate-only', 'only check the job; nothing is stored')
    .option('--kinds <kinds>', 'create a job of each of these kinds, for a comparison', kindList)
    .option('--seeds <seeds>', 'create a job with each of these seeds, for example 1,2,3', wholeNumbers)
    .option(
      '--comparison <id>',
      'id of the comparison; with the same id a repeated command returns the same jobs',
    )
    .action((flags: CreateFlags & ComparisonFlags) =>
      run(async (session) => {
        const { kinds, seeds, comparison } = flags;
        const isComparison = [kinds, seeds, comparison].some((flag) => flag !== undefined);
        if (isComparison) await createComparison(session, flags);
        else await create(session, flags, await readSpec(flags));
      }),
    );
}

interface RunFlags extends CreateFlags {
  file?: string[];
  vocabulary?: number;
  output?: string;
}

function addRun(program: Command, run: Run): void {
  addSpecOptions(
    program
      .command('run [file]')
      .description(
        'create a job, watch it and download its weights; the job is described by a run file (see init) and by flags, which override the file',
      ),
  )
    .option('--id <id>', 'id; by default the server chooses one')
    .option('--title <text>', 'title, shown instead of the id')
    .option('--label <key=value...>', 'labels to find the job by', label)
    .option('--file <path...>', 'upload these files as the data set: text, JSON lines or lists, CSV, Parquet')
    .option(
      '--vocabulary <n>',
      'train a BPE tokenizer with a vocabulary of this size on the files; by default each byte is a token',
      wholeNumber,
    )
    .option('--output <folder>', 'folder for the weights; by default relora-output')
    .addHelpText(
      'after',
      '\nCtrl-C leaves the job running, and prints the command with which to watch it again.',
    )
    .action((path: string | undefined, flags: RunFlags) =>
      run(async (session) => {
        if (path === undefined) return await runJob(session, flags);
        const { spec, files, labels, ...rest } = await readRunFile(path);
        await runJob(session, { ...rest, file: files, ...flags, label: { ...labels, ...flags.label } }, spec);
      }),
    );
}

async function runJob(session: Session, flags: RunFlags, base?: JobSpec): Promise<void> {
  const { client, output, signal } = session;
  const { file: files, vocabulary, output: folder = 'relora-output' } = flags;
  // Read before the upload, so that a mistake is reported at once.
  const spec = await readSpec(flags, base);
  // A named data set or mixture takes precedence over files: a run file may contain both.
  if (files !== undefined && flags.dataset === undefined && flags.mixture === undefined) {
    output.note('Uploading and preparing …');
    const dataset = await client.uploadDataset({
      files: files.map((path) => ({ path })),
      spec: vocabulary === undefined ? {} : { tokenizer: { trainedBpe: { vocabularySize: vocabulary } } },
      signal,
    });
    spec.dataset = dataset.name;
    delete spec.mixture;
  }
  const job = await create(session, flags, spec);
  if (job === undefined) return;
  await watchJob(session, job.name, 0);
  const paths = await client.downloadArtifact(job.name, folder, { signal });
  output.result({ paths }, () => [`Weights are in ${folder}: ${paths.length} files, SHA-256 verified.`]);
}

function addFork(program: Command, run: Run): void {
  addSpecOptions(
    program
      .command('fork <job>')
      .alias('restart') // its name in 0.1.0
      .description(
        'create a job that begins at a checkpoint of an ended job, with the settings given here changed',
      ),
  )
    .option(
      '--checkpoint-step <n>',
      'step of the checkpoint to begin at; by default the newest, with --omit-steps the newest before them',
      wholeNumber,
    )
    .option('--title <text>', 'title; by default that of the ended job')
    .option('--id <id>', 'id; by default the server chooses one')
    .option('--label <key=value...>', 'labels to find the job by', label)
    .option('--request-id <uuid>', 'UUID; a repeated command with the same UUID returns the same job')
    .option(
      '--omit-documents-of-step <n>',
      'leave out the documents that explain --step lists for this step',
      wholeNumber,
    )
    .action((name: string, flags: ForkFlags) =>
      run(async ({ client, output, signal }) => {
        const changes = await readSpec(flags);
        if (flags.omitDocumentsOfStep !== undefined)
          changes.omittedDocuments = await documentsOf(
            client,
            jobName(name),
            flags.omitDocumentsOfStep,
            signal,
          );
        const job = await client.forkJob(jobName(name), changes, {
          ...namingOf(flags),
          checkpointStep: flags.checkpointStep,
          signal,
        });
        output.result(job, () => [
          `${job.name} is ${stateText(job)} and begins at step ${job.origin?.step} of ${job.origin?.job}.`,
        ]);
      }),
    );
}

/** The worst documents of a step, in addition to those that the job omits already. */
async function documentsOf(
  client: Session['client'],
  name: string,
  step: number,
  signal: AbortSignal,
): Promise<NonNullable<JobSpec['omittedDocuments']>> {
  const { places } = await client.explainJob(name, { step, signal });
  const { spec } = await client.getJob(name, { signal });
  const omitted = spec?.omittedDocuments ?? [];
  const found = places.flatMap(({ dataset, documentFirstToken, documentTokenCount }) =>
    documentFirstToken === undefined || documentTokenCount === undefined
      ? []
      : [{ dataset, firstToken: documentFirstToken, tokenCount: documentTokenCount }],
  );
  if (found.length === 0)
    throw new UsageError(
      `Step ${step} has no reported documents yet: relora explain ${name.replace('jobs/', '')} --step ${step}`,
    );
  // One document may have several parts in a step.
  const all = [...omitted, ...found];
  const key = (document: (typeof all)[number]): string => `${document.dataset} ${document.firstToken}`;
  return all.filter((document, index) => all.findIndex((other) => key(other) === key(document)) === index);
}

function namingOf(flags: CreateFlags) {
  return {
    displayName: flags.title,
    jobId: flags.id,
    labels: flags.label,
    ...(flags.requestId === undefined ? {} : { requestId: flags.requestId }),
  };
}

/** Undefined if nothing was stored. */
async function create(
  { client, output, signal }: Session,
  flags: CreateFlags,
  spec: JobSpec,
): Promise<Job | undefined> {
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
      throw new UsageError(
        '--id, --title, --request-id and --validate-only cannot be used with --kinds, --seeds or --comparison: mark the jobs with --label',
      );
  const spec = await readSpec(flags);
  const { kinds = [spec.kind ?? JobKind.RELORA], seeds, label: labels } = flags;
  const { id, jobs } = await client.createComparison(spec, {
    ...(flags.comparison === undefined ? {} : { id: flags.comparison }),
    kinds,
    ...(seeds === undefined ? {} : { seeds }),
    ...(labels === undefined ? {} : { labels }),
    signal,
  });
  output.result({ id, jobs }, () => [
    ...jobs.map((job) => `${job.name} is ${stateText(job)}: ${job.displayName}`),
    `Compare them at any time: relora compare --label comparison=${id}`,
  ]);
}
