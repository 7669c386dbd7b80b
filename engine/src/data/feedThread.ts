import { parentPort, workerData } from 'node:worker_threads';
import type { FeedAnswer, FeedOrder, FeedRequest } from './batchFeed.js';
import { DataError } from './dataErrors.js';
import { mixedBatches } from './mixedBatches.js';
import { CheckedShards } from './checkedShards.js';
import { TokenSplit } from './tokenSplit.js';

/** The thread of a BatchFeed; returns batches in the order of the requests. */
const { parts, options, checkedPath } = workerData as FeedOrder;
const checked = new CheckedShards(checkedPath);
const trained = parts.map(
  ({ folder, train, tokenBytes }) => new TokenSplit(folder, train, tokenBytes, (file) => checked.check(file)),
);
const batches = mixedBatches(
  parts.map(({ weight, omitted, endOfTextId }, index) => ({
    ...{ weight, omitted, endOfTextId },
    train: trained[index]!,
  })),
  options,
);

parentPort!.on('message', ({ id, firstSequence, count }: FeedRequest) => {
  try {
    const batch = batches.take(firstSequence, count);
    for (const split of trained) split.assertUnchanged();
    const answer: FeedAnswer = { id, batch };
    const { inputs, targets, documents } = batch;
    parentPort!.postMessage(answer, [inputs.buffer, targets.buffer, documents.buffer] as ArrayBuffer[]);
  } catch (error) {
    const { reason, detail } = error as DataError;
    // Errors sent between threads keep only message and stack.
    const { code, syscall, path } = error as NodeJS.ErrnoException;
    const answer: FeedAnswer =
      error instanceof DataError
        ? { id, reason, detail }
        : { id, error: error as Error, ofSystem: { code, syscall, path } };
    parentPort!.postMessage(answer);
  }
});
