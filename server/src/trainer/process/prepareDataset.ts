import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { appendDataset, encoderThreadsMax, prepareDataset } from '@relora/engine/data';
import type { PreparedDataset } from '../../datasets/dataset.js';
import type { PrepareTask } from '../messages.js';
import type { ServerChannel } from './channel.js';
import { checkDataset } from './checkDataset.js';

/** Fills a new folder with the tokens of a data set, then opens it as a run would, which verifies every hash. */
export async function prepare(task: PrepareTask, channel: ServerChannel): Promise<PreparedDataset> {
  const { tokenizer, textField, pairFields, chat, heldOutShare, seed, skipInvalid } = task.spec;
  const isAppended = task.baseFolder !== null;
  // Appended files are prepared in a separate folder, from which, with the base, the whole is made, again if that is interrupted.
  const addedFolder = isAppended ? join(task.progressFolder, 'added') : task.outputFolder;
  const { formats } = await prepareDataset(
    {
      files: task.files.map(({ path, beneath, fileName, format, split }) => ({
        path,
        beneath: beneath ?? undefined,
        name: fileName,
        format,
        split: split ?? 'auto',
      })),
      outputFolder: addedFolder,
      tokenizer,
      textField,
      pairFields,
      chat,
      heldOutShare,
      seed,
      skipInvalid,
      limits: { unpackedBytesMax: task.unpackedBytesMax, tokenizerCpuSeconds: task.tokenizerCpuSeconds },
      threads: Math.min(task.threads, encoderThreadsMax(tokenizer, task.memoryBytesMax)),
      progress: { folder: task.progressFolder },
    },
    (share) => void channel.answer<'prepareDataset'>({ type: 'part', value: share }),
    channel.stop,
  );
  if (task.baseFolder !== null) {
    await rm(task.outputFolder, { recursive: true, force: true });
    await appendDataset(task.baseFolder, addedFolder, task.outputFolder);
  }
  return { ...(await checkDataset(task.outputFolder)), formats };
}
