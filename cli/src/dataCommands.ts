import type { Command } from 'commander';
import { DatasetFormat, DatasetSplit, ExportedWeights, type Dataset, type PreviewToken } from '@relora/sdk';
import { UsageError } from './exitCodes.js';
import { bytes, quantity } from './format.js';
import { printable, printableLines } from './screenText.js';
import { jobName, label, type Run } from './session.js';
import { datasetName, decimalNumber, readTextFile, wholeNumber } from './specOptions.js';

interface UploadFlags {
  id?: string;
  title?: string;
  label?: Record<string, string>;
  onServer?: boolean;
  appendTo?: string;
  vocabulary?: number;
  tokenizer?: string;
  endToken?: string;
  heldOut?: number;
  format?: string;
  skipInvalid?: string;
  textField?: string;
  promptField?: string;
  completionField?: string;
  messagesField?: string;
  chatTemplate?: string;
}

/** Commands for data sets and downloads. */
export function addDataCommands(program: Command, run: Run): void {
  addUpload(program, run);
  addPreview(program, run);
  addDownload(program, run);
}

function addUpload(program: Command, run: Run): void {
  program
    .command('upload <files...>')
    .description(
      'upload text, JSON lines, JSON lists, CSV or Parquet as a data set, also compressed with gzip',
    )
    .option(
      '--id <id>',
      'id of the data set; an interrupted upload resumes if it is repeated with the same id',
    )
    .option('--title <text>', 'title, shown instead of the id')
    .option('--label <key=value...>', 'labels to find the data set by', label)
    .option('--append-to <dataset>', 'make a new version of this data set: its text, then that of the files')
    .option('--on-server', 'the paths are on the server, in one of its allowed folders')
    .option(
      '--vocabulary <n>',
      'train a BPE tokenizer with a vocabulary of this size on the text',
      wholeNumber,
    )
    .option(
      '--tokenizer <name>',
      'use the tokenizer of uploaded weights, weights/…, or of a data set, datasets/…',
    )
    .option(
      '--end-token <token>',
      'token of that tokenizer that ends a text, if it is not the one that the tokenizer names',
    )
    .option('--held-out <share>', 'share of documents to hold out for evaluation, 0 to 0.5', decimalNumber)
    .option('--format <name>', `${formatNames.join(', ')}; by default recognized by the content`)
    .option('--skip-invalid <n>', 'leave out invalid rows, at most this many, or a share such as 1%')
    .option('--text-field <name>', 'field or column with the text; meta.text for a field inside a structure')
    .option(
      '--prompt-field <name>',
      'field or column with the prompt, which the model reads but does not learn',
    )
    .option('--completion-field <name>', 'field or column with the completion, which the model learns')
    .option(
      '--messages-field <name>',
      'field with the messages of a chat, of which the model learns the answers',
    )
    .option('--chat-template <file>', 'Jinja template for chats; by default that of the tokenizer')
    .action((files: string[], flags: UploadFlags) =>
      run(async ({ client, output, signal }) => {
        const format = formatOf(flags.format);
        const dataset = await client.uploadDataset({
          datasetId: flags.id,
          displayName: flags.title,
          labels: flags.label,
          base: flags.appendTo && datasetName(flags.appendTo),
          files: files.map((path) => ({ ...(flags.onServer ? { serverPath: path } : { path }), format })),
          spec: {
            tokenizer: tokenizerOf(flags),
            heldOutShare: flags.heldOut,
            textField: flags.textField,
            promptField: flags.promptField,
            completionField: flags.completionField,
            messagesField: flags.messagesField,
            chatTemplate: flags.chatTemplate && (await readTextFile(flags.chatTemplate)),
            ...skipInvalidOf(flags.skipInvalid),
          },
          signal,
        });
        output.result(dataset, () => readyText(dataset));
      }),
    );
}

function addPreview(program: Command, run: Run): void {
  program
    .command('preview <dataset>')
    .description('show the first tokens of a data set; prompts, which are not learned, are dimmed or in ⟨ ⟩')
    .option('--tokens <n>', 'number of tokens, at most 1024', wholeNumber)
    .option('--held-out', 'show the held-out part')
    .action((name: string, flags: { tokens?: number; heldOut?: boolean }) =>
      run(async ({ client, output, signal }) => {
        const dataset = name.startsWith('datasets/') ? name : `datasets/${name}`;
        const split = flags.heldOut ? DatasetSplit.HELD_OUT : DatasetSplit.TRAIN;
        const tokens = await client.previewDataset(dataset, { tokenCount: flags.tokens, split, signal });
        output.drawing({ tokens }, () => previewLines(tokens, process.stdout.isTTY));
      }),
    );
}

function addDownload(program: Command, run: Run): void {
  program
    .command('download <job> [folder]')
    .description(
      'download the newest exported weights of a job, or an artifact jobs/…/artifacts/…, into a folder',
    )
    .option('--best', 'of a job: the exported weights with its lowest held-out loss')
    .action((name: string, folder: string | undefined, { best }: { best?: boolean }) =>
      run(async ({ client, output, signal }) => {
        let size = 0;
        const onProgress = ({ sizeBytes }: { sizeBytes: number }) => void (size = sizeBytes);
        const paths = await client.downloadArtifact(jobName(name), folder ?? 'relora-output', {
          signal,
          onProgress,
          ...(best && { weights: ExportedWeights.BEST }),
        });
        output.result({ paths }, () => [downloadText(paths, size), ...paths.map((path) => `  ${path}`)]);
      }),
    );
}

const formatNames = ['text', 'jsonl', 'json', 'csv', 'parquet'] as const;

function formatOf(name: string | undefined): DatasetFormat | undefined {
  if (name === undefined) return undefined;
  const known = formatNames.find((format) => format === name.toLowerCase());
  if (known === undefined)
    throw new UsageError(`--format: expected one of ${formatNames.join(', ')}, got ${name}`);
  return DatasetFormat[known.toUpperCase() as Uppercase<typeof known>];
}

/** A count, or a share, written with % or a decimal point. */
function skipInvalidOf(text: string | undefined): { skipInvalidCount?: number; skipInvalidShare?: number } {
  if (text === undefined) return {};
  if (/^\d+$/.test(text)) return { skipInvalidCount: Number(text) };
  const [, number, percent] = /^(\d*\.?\d+)(%?)$/.exec(text) ?? [];
  const share = Number(number) / (percent === '%' ? 100 : 1);
  if (!(share >= 0 && share <= 1))
    throw new UsageError(`--skip-invalid: expected a count, or a share such as 1% or 0.01, got ${text}`);
  return { skipInvalidShare: share };
}

function readyText({ name, train, heldOut, warnings }: Dataset): string[] {
  const { tokenCount = 0, trainedTokenCount = 0, duplicateDocumentCount: duplicates = 0 } = train ?? {};
  const learned = trainedTokenCount < tokenCount ? ` (${quantity(trainedTokenCount)} of them learned)` : '';
  return [
    `${name} is ready: ${quantity(tokenCount)} tokens to train on${learned}, ${quantity(heldOut?.tokenCount ?? 0)} held out.`,
    ...(duplicates > 0
      ? [
          `${quantity(duplicates)} documents with the same text as a held-out document are left out of training.`,
        ]
      : []),
    ...warnings.map(({ reason, message }) => `Warning ${reason}: ${printable(message)}`),
  ];
}

/** Tokens one after another as text; parts that are not learned are marked. */
export function previewLines(tokens: readonly PreviewToken[], isTerminal: boolean): string[] {
  const [begin, end] = isTerminal ? ['\u001b[2m', '\u001b[22m'] : ['⟨', '⟩'];
  let text = '';
  let isMarked = false;
  for (const token of tokens) {
    if (token.trained === isMarked) text += isMarked ? end : begin;
    isMarked = !token.trained;
    text += printableLines(token.text);
  }
  return [isMarked ? text + end : text];
}

type TokenizerFlags = Pick<UploadFlags, 'vocabulary' | 'tokenizer' | 'endToken'>;

function tokenizerOf({ vocabulary, tokenizer, endToken }: TokenizerFlags) {
  if (vocabulary !== undefined && tokenizer !== undefined)
    throw new UsageError('--vocabulary and --tokenizer cannot be used together');
  if (tokenizer?.startsWith('datasets/')) {
    if (endToken !== undefined)
      throw new UsageError('--end-token can only be used with the tokenizer of weights');
    return { dataset: tokenizer };
  }
  if (tokenizer !== undefined) return { huggingFace: { weights: tokenizer, endToken } };
  if (endToken !== undefined) throw new UsageError('--end-token can only be used with --tokenizer');
  return vocabulary === undefined ? undefined : { trainedBpe: { vocabularySize: vocabulary } };
}

/** Bytes and files of a download, for people. */
export function downloadText(paths: readonly string[], sizeBytes: number): string {
  return `${paths.length} files, ${bytes(sizeBytes)}, SHA-256 verified:`;
}
