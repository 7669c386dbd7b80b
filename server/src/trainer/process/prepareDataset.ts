import { Dataset, prepareDataset } from '@relora/engine/data';
import type { PreparedDataset } from '../../datasets/dataset.js';
import type { PrepareTask } from '../messages.js';
import type { ServerChannel } from './channel.js';

/** Fills a new folder with the tokens of a data set, then opens it as a run would, which checks every hash. */
export async function prepare(task: PrepareTask, channel: ServerChannel): Promise<PreparedDataset> {
  const { tokenizer, textField, pairFields, heldOutShare, seed } = task.spec;
  await prepareDataset(
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
    };
  } finally {
    await dataset.close();
  }
}
