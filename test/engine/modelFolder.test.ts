import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { checkModelFolder, ModelFolderInvalid, SafetensorsInvalid } from '@relora/engine';
import { mutated } from './dataFixtures.js';

const fixture = join(import.meta.dirname, '../fixtures/transformers/sharded-bfloat16');
const folder = mkdtempSync(join(tmpdir(), 'relora-folder-'));
cpSync(fixture, folder, { recursive: true });
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Whether the folder is refused with one of the reader's own errors, short enough to be shown; otherwise it must be valid. */
async function isRefused(): Promise<boolean> {
  try {
    const { parameterCount } = await checkModelFolder(folder, { values: true });
    expect(parameterCount).toBeGreaterThan(0);
    return false;
  } catch (error) {
    expect([ModelFolderInvalid, SafetensorsInvalid]).toContain((error as Error).constructor);
    expect((error as Error).message.length).toBeLessThan(1000);
    return true;
  }
}

async function withFile(name: string, content: string | Uint8Array): Promise<boolean> {
  const path = join(folder, name);
  const original = readFileSync(path);
  writeFileSync(path, content);
  try {
    return await isRefused();
  } finally {
    writeFileSync(path, original);
  }
}

describe('a folder of weights', () => {
  const names = ['config.json', 'model.safetensors.index.json', 'model-00001-of-00003.safetensors'];
  for (const name of names) {
    it(`with ${name} changed at random is read whole or refused`, async () => {
      const original = readFileSync(join(fixture, name));
      let refusedCount = 0;
      for (let number = 0; number < 300; number++)
        if (await withFile(name, mutated(original, number))) refusedCount++;
      expect(refusedCount).toBeGreaterThan(50);
    });
  }

  const hostile = [null, true, -1, 0.5, 2 ** 31 - 1, 1e308, '', '../x', 'x'.repeat(1e5), [], {}, [{ a: [] }]];

  it('with any value for any key of config.json is read whole or refused', async () => {
    const config = JSON.parse(readFileSync(join(fixture, 'config.json'), 'utf8')) as Record<string, unknown>;
    const keys = [...Object.keys(config), 'rope_scaling', 'head_dim', 'sliding_window', 'layer_types'];
    for (const key of keys)
      for (const value of hostile) await withFile('config.json', JSON.stringify({ ...config, [key]: value }));
    for (const value of hostile) expect(await withFile('config.json', JSON.stringify(value))).toBe(true);
  });

  it('with any value in its index is refused', async () => {
    for (const value of hostile) {
      const inMap = JSON.stringify({ weight_map: { 'model.norm.weight': value } });
      expect(await withFile('model.safetensors.index.json', inMap)).toBe(true);
      expect(await withFile('model.safetensors.index.json', JSON.stringify({ weight_map: value }))).toBe(
        true,
      );
    }
  });
});
