/** The tokenizer is trained on the text itself. */
export const vocabularySize = 4096;

/** The demo's job: a Llama of 3.3 million weights, full-rank at first, then five low-rank cycles. */
export function demoJob(dataset) {
  const warmStart = 240;
  const cycle = 112;
  const cycles = 5;
  const steps = warmStart + cycle * cycles;
  return {
    model: { preset: 'demo' },
    dataset,
    warmStart: { stepCount: warmStart, learningRate: 5e-4, warmupStepCount: 20 },
    stepCount: cycle * cycles,
    adapter: { rank: 32, alpha: 32, cycleStepCount: cycle, restartWarmupStepCount: 8 },
    learningRate: { peak: 4e-3, warmupStepCount: 10 },
    optimizer: { beta2: 0.99 },
    batch: { sequenceLength: 256, sequenceCount: 4 },
    evaluation: { everyStepCount: steps / 5, tokenCount: 16_384 },
    checkpoint: { everyStepCount: steps / 4 },
    sample: { everyStepCount: steps / 5, prompt: 'The American people', tokenCount: 48 },
    seed: 1,
  };
}
