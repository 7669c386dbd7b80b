import { generateTokens } from '../generation/generateTokens.js';
import type { TrainingRun } from './trainingRun.js';

/** Samples are for people: likely enough to be readable, random enough to show what was learned. */
const sampling = { temperature: 0.8, topK: 40, topP: 0.95 };

/** Text that the model generates from the specification's prompt; null if the signal is aborted. */
export async function writeSample(
  run: TrainingRun,
  step: number,
  signal: AbortSignal,
): Promise<{ prompt: string; text: string } | null> {
  const { model, dataset, spec } = run;
  const { prompt, tokenCount } = spec.sample;
  const ids = Array.from(await dataset.tokenizer.encode(prompt));
  const stopId = dataset.tokenizer.endOfTextId;
  const written: number[] = [];
  const settings = { ...sampling, tokenCountMax: tokenCount, seed: spec.seed + step, stopId };
  // A text follows an end-of-text token, as in the training data.
  for await (const id of generateTokens(model, ids.length > 0 ? ids : [stopId], settings, signal))
    written.push(id);
  return signal.aborted ? null : { prompt, text: await dataset.tokenizer.decode(written) };
}
