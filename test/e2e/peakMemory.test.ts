import { readFileSync } from 'node:fs';
import { ReloraClient, parseJobSpec } from '@relora/sdk';
import { expect, it, onTestFinished } from 'vitest';
import { trainerPeak } from '../../bench/sides/trainerPeak.mjs';
import { temporaryFolder } from '../server/parts.js';
import { startServerProcess } from './serverProcess.js';

// A separate server for each precision, so that children of other jobs do not count.
it
  .skipIf(process.platform !== 'linux')
  .each(['PRECISION_FLOAT32', 'PRECISION_BFLOAT16', 'PRECISION_INT8_BASE', 'PRECISION_NF4_BASE'])(
  'a trainer takes what was estimated over two restarts, within a twentieth: %s',
  async (precision) => {
    const server = await startServerProcess(temporaryFolder(), { RELORA_THREADS: '2' });
    const client = new ReloraClient({ address: server.grpcAddress });
    onTestFinished(() => client.close());
    const content = readFileSync(new URL('../../LICENSE', import.meta.url));
    const dataset = await client.uploadDataset({ files: [{ content, fileName: 'license.txt' }] });
    const spec = parseJobSpec({
      kind: 'JOB_KIND_RELORA',
      model: { preset: 'llama-20m' },
      dataset: dataset.name,
      warmStart: { stepCount: 0 },
      adapter: { rank: 128, cycleStepCount: 1 },
      stepCount: 3,
      batch: { sequenceLength: 256, sequenceCount: 8 },
      precision,
      evaluation: { tokenCount: 256, finalTokenCount: 256 },
    });
    const { estimate } = await client.estimateJob(spec);
    const { peakBytes } = await trainerPeak(client, server.process.pid!, spec);
    const ratio = estimate!.peakMemoryBytes / peakBytes;
    expect(ratio).toBeGreaterThan(0.95);
    expect(ratio).toBeLessThan(1.05);
  },
);
