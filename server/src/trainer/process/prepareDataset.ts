import { Dataset, prepareDataset, type DatasetManifest } from '@relora/engine/data';
import type { PreparedDataset } from '../../datasets/dataset.js';
import type { PrepareTask } from '../messages.js';
import type { ServerChannel } from './channel.js';

/** Fills a new folder with the tokens of a data set, then opens it as a run would, which checks every hash. */
export async function prepare(task: PrepareTask, channel: ServerChannel): Promise<PreparedDataset> {
  const { tokenizer, textField, pairFields, heldOutShare, seed, skipInvalid } = task.spec;
  const { formats } = await prepareDataset(
    {
      files: task.files.map(({ path, fileName, format, split }) => ({
        path,
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
      limits: { unpackedBytesMax: task.unpackedBytesMax },
    },
    (share) => void channel.tell<'prepareDataset'>({ type: 'part', value: share }),
    channel.stop,
  );
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
    };
  } finally {
    await dataset.close();
  }
}

function skippedRows(skipped: DatasetManifest['skipped']): Pick<PreparedDataset, 'skippedRows' | 'warnings'> {
  if (skipped === undefined) return {};
  const { rows: rowCount, of: totalRowCount, first } = skipped;
  const message = `${rowCount} of ${totalRowCount} rows were left out; the first: ${first[0]?.message}`;
  return {
    skippedRows: { rowCount, totalRowCount, first },
    warnings: [{ reason: 'ROWS_SKIPPED', message }],
  };
}
