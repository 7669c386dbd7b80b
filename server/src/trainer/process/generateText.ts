import { generateTokens } from '@relora/engine';
import { TextStream } from '@relora/engine/data';
import type { GenerateTask } from '../messages.js';
import { deviceFor } from './device.js';
import type { ServerChannel } from './channel.js';
import { loadModel } from './loadModel.js';

/** Continues a text piece by piece; pieces are whole characters, although a token may be only a part of one. */
export async function generateText(task: GenerateTask, channel: ServerChannel): Promise<null> {
  const device = await deviceFor(task.device, 'float32');
  const { model, tokenizer } = await loadModel(device, task);
  const stopId = tokenizer.endOfTextId;
  const { tokenCountMax, temperature, topK, topP, seed } = task;

  // A text begins after an end of text, as in the training data.
  const prompt = [stopId, ...Array.from(await tokenizer.encode(task.prompt))];
  const text = new TextStream(tokenizer);
  let tokenCount = 0;
  for await (const id of generateTokens(model, prompt, {
    tokenCountMax,
    temperature,
    topK,
    topP,
    seed,
    stopId,
  })) {
    tokenCount++;
    const piece = await text.push(id);
    if (piece !== '')
      await channel.answer<'generate'>({
        type: 'part',
        value: { text: piece, tokenCount, finishReason: null },
      });
  }
  const finishReason = tokenCount < tokenCountMax ? 'endOfText' : 'tokenCount';
  await channel.answer<'generate'>({
    type: 'part',
    value: { text: await text.end(), tokenCount, finishReason },
  });
  return null;
}
