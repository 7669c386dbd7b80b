import { describe, expect, it } from 'vitest';
import { loadNativeAddon, openDevice } from '@relora/engine';
import { planned } from '../../bench/planned.mjs';
import { configOf } from '../../bench/session.mjs';
import { Trainer } from '../../bench/sides/trainer.mjs';

const { instructionSets } = loadNativeAddon().describe();
const precisions = ['float32', 'bfloat16', 'int8Base', 'nf4Base'] as const;

/** Processor time of this process, on which other load on the machine has little effect. */
function processorSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

/**
 * Ratio of estimate to measurement: a step of a small model on one thread, with the processor speed that a server measures at its start.
 * Both are measured in turns, and the middle one of their ratios counts: what another program takes of a shared core takes it from both.
 */
async function foreseenOverMeasured(
  instructionSet: (typeof instructionSets)[number],
  precision: (typeof precisions)[number],
): Promise<number> {
  const device = await openDevice({ device: 'native', precision, instructionSet, threads: 1 });
  const shape = { preset: 'llama-9m', layerCount: undefined, vocabSize: 8192 };
  const side = { ...shape, rank: 16, batch: 4, time: 256, precision };
  const trainer = new Trainer({ ...side, config: configOf(shape), alpha: 16, model: undefined }, device);
  for (let step = 0; step < 2; step++) await trainer.step(); // the first one allocates, and code is compiled beside the others
  const ratios: number[] = [];
  for (let turn = 0; turn < 5; turn++) {
    const foreseen = planned(side, await device.measure()).seconds;
    const beganAt = processorSeconds();
    await trainer.step();
    ratios.push(foreseen / (processorSeconds() - beganAt));
  }
  return ratios.sort((one, other) => one - other)[2]!;
}

describe('the time that is foreseen, beside what a step takes here', () => {
  it.each(instructionSets)('%s', async (instructionSet) => {
    const ratios: number[] = [];
    for (const precision of precisions) ratios.push(await foreseenOverMeasured(instructionSet, precision));
    // The model has to be accurate to a fifth (docs/performance.md); the additional tolerance is for a small model on a shared machine.
    for (const ratio of ratios) {
      expect(ratio).toBeGreaterThan(0.7);
      expect(ratio).toBeLessThan(1.4);
      // Ratio between precisions, which does not depend on the machine: a peak measured at half would show.
      expect(ratio / ratios[0]!).toBeGreaterThan(0.75);
      expect(ratio / ratios[0]!).toBeLessThan(1.35);
    }
  });
});
