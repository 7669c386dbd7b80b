import { createHash } from 'node:crypto';
import { MemberLost } from '../device/exchange.js';
import { valuesOf } from '../model/parameter.js';
import type { TrainingRun } from './trainingRun.js';

/**
 * Members of a run apply the same gradient sums to their weights and never exchange the weights themselves. Once a cycle and at the end
 * they check that these are equal: otherwise wrong bits in one member, from faulty memory for example, would enter the run unnoticed.
 */
export async function requireSameBits({ model, device, collective, progress }: TrainingRun): Promise<void> {
  if (collective.size === 1) return;
  const hash = createHash('sha256');
  for (const parameter of model.parameters.values()) {
    const values = await valuesOf(device, parameter);
    hash.update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    device.discard(values);
  }
  const own = hash.digest('hex');
  const first = await collective.broadcast(own);
  if (!(await collective.any(own !== first))) return;
  throw new MemberLost(
    `The ranks do not hold the same weights before step ${progress.nextStep}: a memory or a processor is faulty, or they run on different kinds of processors`,
  );
}
