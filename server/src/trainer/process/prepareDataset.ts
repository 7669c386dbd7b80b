import {
  appendDataset,
  Dataset,
  idleSequencesText,
  prepareDataset,
  type DatasetManifest,
} from '@relora/engine/data';
import type { PreparedDataset } from '../../datasets/dataset.js';
import type { PrepareTask } from '../messages.js';
import type { ServerChannel } from './channel.js';

/** Fills a new folder with the tokens of a data set, then opens it as a run would, which checks every hash. */
export async function prepare(task: PrepareTask, channel: ServerChannel): Promise<PreparedDataset> {
  const { tokenizer, textField, pairFields, heldOutShare, seed, skipInvalid } = task.spec;
  const { formats } = await prepareDataset(
    {
      files: task.files.map(({ path, beneath, fileName, format, split }) => ({
        path,
        beneath: beneath ?? undefined,
        name: fileName,
        format,
        split: split ?? 'auto',
      })),
      outputFolder: task.outputFolder,
      tokenizer,
      textField,
      pairFields,
      heldOutShare,
      seed,
      skipInvalid,
      limits: { unpackedBytesMax: task.unpackedBytesMax, tokenizerCpuSeconds: task.tokenizerCpuSeconds },
    },
    (share) => void channel.answer<'prepareDataset'>({ type: 'part', value: share }),
    channel.stop,
  );
  if (task.baseFolder !== null) await appendDataset(task.baseFolder, task.outputFolder);
  const dataset = await Dataset.open(task.outputFolder, { verify: true });
  try {
    const { manifest, manifestSha256 } = dataset;
    const size = ({ tokens, documents, bytes, duplicates, trained }: typeof manifest.train) => ({
      tokenCount: tokens,
      documentCount: documents,
      textBytes: bytes,
      duplicateDocumentCount: duplicates ?? 0,
      trainedTokenCount: trained?.tokens ?? tokens,
    });
    return {
      tokenizer: manifest.tokenizer,
      train: size(manifest.train),
      heldOut: size(manifest.heldOut),
      manifestSha256,
      formats,
      ...skippedRows(manifest.skipped),
      warnings: await warningsOf(dataset),
    };
  } finally {
    await dataset.close();
  }
}

function skippedRows(skipped: DatasetManifest['skipped']): Pick<PreparedDataset, 'skippedRows'> {
  if (skipped === undefined) return {};
  const { rows: rowCount, of: totalRowCount, first } = skipped;
  return { skippedRows: { rowCount, totalRowCount, first } };
}

async function warningsOf({ manifest, train }: Dataset): Promise<NonNullable<PreparedDataset['warnings']>> {
  const warnings: NonNullable<PreparedDataset['warnings']> = [];
  const { skipped } = manifest;
  if (skipped !== undefined) {
    const message = `${skipped.rows} of ${skipped.of} rows were left out; the first: ${skipped.first[0]?.message}`;
    warnings.push({ reason: 'ROWS_SKIPPED', message });
  }
  const idle = manifest.train.trained === undefined ? null : await idleSequencesText(train);
  if (idle !== null) warnings.push({ reason: 'PROMPTS_LONG', message: idle });
  return warnings;
}
