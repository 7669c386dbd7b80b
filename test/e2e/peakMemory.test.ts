import { readFileSync, readdirSync } from 'node:fs';
import { ReloraClient, parseJobSpec } from '@relora/sdk';
import { expect, it, onTestFinished } from 'vitest';
import { temporaryFolder } from '../server/parts.js';
import { startServerProcess } from './serverProcess.js';

/** The most that each child of a process has held so far, by its pid. */
function childPeaks(pid: number): Map<string, number> {
  const peaks = new Map<string, number>();
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    for (const child of readFileSync(`/proc/${pid}/task/${thread}/children`, 'utf8').trim().split(' ')) {
      try {
        const status = readFileSync(`/proc/${child}/status`, 'utf8');
        peaks.set(child, 1024 * Number(/^VmHWM:\s*(\d+) kB$/m.exec(status)?.[1] ?? 0));
      } catch {
        // It has ended.
      }
    }
  }
  return peaks;
}

it.skipIf(process.platform !== 'linux').each(['PRECISION_INT8_BASE'])(
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
    const before = childPeaks(server.process.pid!);
    let peak = 0;
    const timer = setInterval(() => {
      for (const [pid, bytes] of childPeaks(server.process.pid!))
        if (!before.has(pid)) peak = Math.max(peak, bytes);
    }, 20);
    onTestFinished(() => clearInterval(timer));
    const { name } = await client.createJob(spec);
    await client.waitForJob(name);
    const ratio = estimate!.peakMemoryBytes / peak;
    expect(ratio).toBeGreaterThan(0.95);
    expect(ratio).toBeLessThan(1.05);
  },
);
