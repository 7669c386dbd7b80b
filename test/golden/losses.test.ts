import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { beginRun, disposeRun, selectBackend, type BackendOptions } from '@relora/engine';
import { goldenSpec } from './goldenRun.js';
import { licenceDataset, ofKind, runLoop, temporaryFolders } from '../engine/tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenceDataset(newFolder);
const file = fileURLToPath(new URL('./losses.json', import.meta.url));

async function losses(options: BackendOptions): Promise<number[]> {
  const backend = await selectBackend(options);
  const run = await beginRun({
    spec: goldenSpec,
    backend,
    dataset: await dataset(),
    runFolder: newFolder(),
    attempt: 1,
  });
  const steps = ofKind(await runLoop(run), 'step');
  disposeRun(run);
  return steps.map(({ loss }) => loss);
}

/**
 * The losses of a whole small run. A change that is not meant to alter numbers leaves them alone; one that is regenerates the file
 * with `REGENERATE_GOLDEN=1 npx vitest run test/golden/losses.test.ts` and shows both curves.
 */
describe('the golden loss curve', () => {
  const backends: [name: string, options: BackendOptions, tolerance: number][] = [
    ['reference', { device: 'reference', precision: 'float32' }, 1e-6],
    // Other orders of summation: measured 2.4e-7, the last bit of a loss.
    ['native, portable', { device: 'native', precision: 'float32', instructionSet: 'portable' }, 1e-5],
    ['native, best instruction set', { device: 'native', precision: 'float32' }, 1e-5],
  ];

  it.each(backends)('is repeated on %s', async (name, options, tolerance) => {
    const found = await losses(options);
    if (name === 'reference' && process.env['REGENERATE_GOLDEN'] === '1') {
      const regenerate = 'REGENERATE_GOLDEN=1 npx vitest run test/golden/losses.test.ts';
      writeFileSync(file, `${JSON.stringify({ regenerate, losses: found }, null, 2)}\n`);
    }
    const golden = (JSON.parse(readFileSync(file, 'utf8')) as { losses: number[] }).losses;
    expect(found).toHaveLength(golden.length);
    const largest = Math.max(...found.map((loss, step) => Math.abs(loss - golden[step]!)));
    expect(largest).toBeLessThan(tolerance);
  });
});
