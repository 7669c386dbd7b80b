import {
  generateTokens,
  loadModelFolder,
  loadModelFromCheckpoint,
  type Device,
  type Llama,
} from '@relora/engine';
import { openTokenizer, TextStream, type Tokenizer } from '@relora/engine/data';
import type { GenerateTask } from '../messages.js';
import { deviceFor } from './device.js';
import type { ServerChannel } from './channel.js';

/** Continues a text piece by piece; pieces are whole characters, though a token may be a part of one. */
export async function generateText(task: GenerateTask, channel: ServerChannel): Promise<null> {
  const device = await deviceFor(task.device, 'float32');
  const { model, tokenizer } = await load(device, task);
  const stopId = tokenizer.endOfTextId;
  const { tokenCountMax, temperature, topK, topP, seed } = task;

  // A text begins after an end of text, as it does in the training data.
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

async function load(
  device: Device,
  { source, datasetFolder }: GenerateTask,
): Promise<{ model: Llama; tokenizer: Tokenizer }> {
  if (source.kind === 'artifact') {
    const { model, tokenizer } = await loadModelFolder(device, source.folder);
    if (tokenizer === null) throw new Error('The artifact has no tokenizer.json');
    return { model, tokenizer };
  }
  if (datasetFolder === null) throw new Error('The text of a checkpoint needs the tokenizer of its data set');
  const { tokenizer } = await openTokenizer(datasetFolder);
  return { model: await loadModelFromCheckpoint(device, source.folder), tokenizer };
}
