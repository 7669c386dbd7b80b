import { parentPort, workerData } from 'node:worker_threads';
import { DataError } from './dataErrors.js';
import { encodeBlock, type TextBlock } from './encodeBlock.js';
import type { EncoderAnswer, EncoderOrder } from './encoders.js';
import { jsonTokenizer } from './tokenizer.js';

/** A thread of EncoderThreads; encodes one block after another. */
const { json, kind, endTokens } = workerData as EncoderOrder;
const tokenizer = jsonTokenizer(json, kind, { isTrusted: true, endTokens });

parentPort!.on('message', (block: TextBlock) => {
  void answerTo(block).then(({ answer, moved }) => parentPort!.postMessage(answer, moved));
});

async function answerTo(block: TextBlock): Promise<{ answer: EncoderAnswer; moved: ArrayBuffer[] }> {
  try {
    const encoded = await encodeBlock(await tokenizer, block);
    return { answer: { block: encoded }, moved: [encoded.tokens.buffer, encoded.counts.buffer] };
  } catch (error) {
    const { reason, detail } = error as DataError;
    const answer = error instanceof DataError ? { reason, detail } : { error: error as Error };
    return { answer, moved: [] };
  }
}
