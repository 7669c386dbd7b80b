import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModelFolder, openDevice, type Device } from '@relora/engine';

const fixtures = join(import.meta.dirname, '../fixtures/transformers');
const varieties = readdirSync(fixtures).filter((name) => statSync(join(fixtures, name)).isDirectory());

/**
 * Relative to the largest logit. A value goes through sums of at most 24 terms and a few functions in each of four halves and the head:
 * about a hundred roundings of 2^-24, whose signs vary.
 */
const toleranceRatio = 100 * 2 ** -24;

let device: Device;
beforeAll(async () => void (device = await openDevice({ device: 'native', precision: 'float32' })));

/** Largest difference of our logits for a folder from those of transformers, relative to the largest logit. */
async function disagreement(folder: string): Promise<number> {
  const expected = JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')) as {
    ids: number[];
    logits: number[][];
  };
  const { model } = await loadModelFolder(device, folder);
  const logits = await model.logits(Int32Array.from(expected.ids), 1, expected.ids.length, {
    precision: 'float32',
  });
  // One id after another, as in generation, must give the same last logits.
  const cache = model.newCache();
  let last: Float32Array = new Float32Array(0);
  for (const id of expected.ids) last = await model.extend(cache, Int32Array.of(id));
  model.dispose();
  const wanted = expected.logits.flat();
  const largest = Math.max(...wanted.map(Math.abs));
  const errors = wanted.map((value, i) => Math.abs(value - logits[i]!));
  const lastErrors = expected.logits.at(-1)!.map((value, i) => Math.abs(value - last[i]!));
  return Math.max(...errors, ...lastErrors) / largest;
}

describe('logits of models that transformers wrote', () => {
  for (const name of varieties) {
    it(`are those that transformers computed: ${name}`, async () => {
      expect(await disagreement(join(fixtures, name))).toBeLessThan(toleranceRatio);
    });
  }
});

const python = process.env.RELORA_TEST_PYTHON ?? 'python3';
const hasTransformers = (() => {
  try {
    execFileSync(python, ['-c', 'import torch, transformers'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
})();

describe.skipIf(!hasTransformers)(
  `models made afresh by transformers${hasTransformers ? '' : ` (skipped: ${python} has no torch and transformers)`}`,
  () => {
    const folder = mkdtempSync(join(tmpdir(), 'relora-transformers-'));
    afterAll(() => rmSync(folder, { recursive: true, force: true }));

    it('have the logits that transformers computes', async () => {
      execFileSync(python, [join(fixtures, 'make.py'), folder, '1000'], { stdio: 'pipe' });
      for (const name of varieties)
        expect(await disagreement(join(folder, name)), name).toBeLessThan(toleranceRatio);
    });
  },
);
