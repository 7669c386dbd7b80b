import { createHash } from 'node:crypto';
import type { Llama } from './llama.js';

/**
 * SHA-256 over names and float32 values of a model's weights, in the model's order: the same for all files with these values, whatever
 * their stored type and number of shards.
 */
export async function weightsSha256(model: Llama): Promise<string> {
  const hash = createHash('sha256');
  for (const parameter of model.parameters.values())
    hash.update(`${parameter.name}\n`).update(await model.valuesOf(parameter));
  return hash.digest('hex');
}
