import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';

/** A data folder that is removed after the test. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'relora-e2e-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }));
  return folder;
}

/** About 20 kB of repetitive English, so that a tiny model learns within seconds. */
export function tinyText(): string {
  const lines = Array.from(
    { length: 300 },
    (_, index) => `Line ${index}: the quick brown fox jumps over the lazy dog, ${index * 7919} times.\n`,
  );
  return lines.join('');
}

/** A job of a few seconds in JSON, as a person would write it for grpcurl. */
export function tinySpec(stepCount: number) {
  return {
    kind: 'JOB_KIND_RELORA',
    model: {
      config: { hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 2 },
    },
    dataset: 'datasets/tiny-text',
    warm_start: { step_count: 10, warmup_step_count: 2 },
    adapter: { rank: 4, cycle_step_count: 10, restart_warmup_step_count: 2 },
    step_count: stepCount,
    batch: { sequence_length: 32, sequence_count: 4, micro_batch_sequence_count: 4 },
    evaluation: { every_step_count: 20, token_count: 256, final_token_count: 256 },
    checkpoint: { every_step_count: 10 },
    seed: 7,
    every_step_event: true,
  };
}
