import { Dataset } from '@relora/engine/data';
import type { PreviewedToken, PreviewTask } from '../messages.js';

/** The first tokens of a part as the model sees them. */
export async function preview({ preparedFolder, split, tokenCount }: PreviewTask): Promise<PreviewedToken[]> {
  const dataset = await Dataset.open(preparedFolder, { verify: false });
  try {
    return await dataset.preview(split, tokenCount);
  } finally {
    await dataset.close();
  }
}
