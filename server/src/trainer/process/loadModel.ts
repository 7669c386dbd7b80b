import { loadModelFolder, loadModelFromCheckpoint, type Device, type Llama } from '@relora/engine';
import { openTokenizer, type Tokenizer } from '@relora/engine/data';
import type { ModelPlace } from '../messages.js';

/** A model with its tokenizer: that of an artifact, or for a checkpoint that of the data set it was trained on. */
export async function loadModel(
  device: Device,
  { source, datasetFolder }: ModelPlace,
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
