/** The tokenizer is trained on the text itself. */
export const vocabularySize = 4096;

/** What the demo trains: a Llama of 3.3 million weights, full-rank at first, then five low-rank cycles. */
export function demoJob(dataset) {
  const warmStart = 120;
  const cycle = 48;
  const cycles = 5;
  const steps = warmStart + cycle * cycles;
  return {
    model: { preset: 'demo' },
    dataset,
    warmStart: { stepCount: warmStart, learningRate: 3e-3, warmupStepCount: 20 },
    stepCount: cycle * cycles,
    adapter: { rank: 32, alpha: 32, cycleStepCount: cycle, restartWarmupStepCount: 6 },
    learningRate: { peak: 8e-3, warmupStepCount: 10 },
    optimizer: { beta2: 0.99 },
    batch: { sequenceLength: 256, sequenceCount: 8 },
    evaluation: { everyStepCount: steps / 6, tokenCount: 16_384 },
    checkpoint: { everyStepCount: steps / 3 },
    sample: { everyStepCount: steps / 6, prompt: 'The American people', tokenCount: 48 },
    seed: 1,
  };
}
