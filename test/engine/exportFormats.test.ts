import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  beginRun,
  disposeRun,
  exportModel,
  loadModelFolder,
  runWeights,
  saveCheckpoint,
  openDevice,
  withCheckpointWeights,
  type ExportManifest,
  type ExportOptions,
  type TrainingRun,
} from '@relora/engine';
import { licenseDataset, runLoop, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
const defaults = { format: 'huggingFace', weightType: 'float32', shardBytesMax: 1e9, job: null } as const;

async function trainedRun(changes: Parameters<typeof tinySpec>[0] = {}, lastStep = 15): Promise<TrainingRun> {
  const device = await openDevice({ device: 'native', precision: 'float32', threads: 2 });
  const spec = tinySpec(changes);
  const run = await beginRun({ spec, device, dataset: await dataset(), runFolder: newFolder(), attempt: 1 });
  await runLoop(run, (event) => event.kind === 'step' && event.step === lastStep);
  return run;
}

async function exported(run: TrainingRun, options: Partial<ExportOptions>) {
  const folder = join(newFolder(), 'model');
  const { files } = await exportModel(await runWeights(run), folder, { ...defaults, ...options });
  const manifest = JSON.parse(readFileSync(join(folder, 'relora_manifest.json'), 'utf8')) as ExportManifest;
  return { folder, files, manifest };
}

describe('an export', () => {
  it('is divided into files of the size that was asked for, which an index joins', async () => {
    const run = await trainedRun();
    const whole = await exported(run, {});
    const { folder, files } = await exported(run, { shardBytesMax: 20_000 });
    const shards = readdirSync(folder).filter((name) => /^model-\d{5}-of-\d{5}\.safetensors$/.test(name));
    expect(shards.length).toBeGreaterThan(3);
    // The embedding by itself has 257 x 32 float32 values, more than the limit: it gets its own file.
    const headerMax = 4096;
    for (const shard of shards.slice(1))
      if (!shard.startsWith(`model-${String(shards.length).padStart(5, '0')}`))
        expect(statSync(join(folder, shard)).size).toBeLessThanOrEqual(20_000 + headerMax);
    expect(files.map(({ fileName }) => fileName)).toContain('model.safetensors.index.json');
    const [one, other] = [
      await loadModelFolder(run.device, whole.folder),
      await loadModelFolder(run.device, folder),
    ];
    for (const [name, parameter] of one.model.parameters)
      expect(await other.model.valuesOf(other.model.parameters.get(name)!)).toEqual(
        await one.model.valuesOf(parameter),
      );
    [one.model, other.model].forEach((model) => model.dispose());
    disposeRun(run);
  });

  it.each(['huggingFace', 'peft', 'gguf'] as const)(
    'as %s from a checkpoint has the bits of one from the run',
    async (format) => {
      const run = await trainedRun({ adapter: { trainableScale: true } });
      const { path, manifestSha256 } = await saveCheckpoint(run);
      const { files } = await exported(run, { format });
      const { folder, tokenizer } = await dataset();
      const target = join(newFolder(), 'model');
      const again = await withCheckpointWeights(
        run.device,
        path,
        { folder, tokenizer },
        { manifestSha256 },
        async (source) => await exportModel(source, target, { ...defaults, format }),
      );
      expect(again.files).toEqual(files);
      disposeRun(run);
    },
  );

  it('as PEFT is refused in a full-rank phase, which has no adapter', async () => {
    const run = await trainedRun({}, 2);
    const exporting = exported(run, { format: 'peft' });
    await expect(exporting).rejects.toMatchObject({ reason: 'EXPORT_IMPOSSIBLE' });
    await expect(exporting).rejects.toThrow('a model with adapters, found the full-rank phase at step 3');
    disposeRun(run);
  });

  it('names its base, adapters and dropout for PEFT', async () => {
    const run = await trainedRun({ adapter: { dropout: 0.1, targetModules: ['q_proj', 'v_proj'] } });
    const { folder, files } = await exported(run, { format: 'peft', weightType: 'bfloat16' });
    expect(JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'))).toMatchObject({
      peft_type: 'LORA',
      base_model_name_or_path: 'base',
      r: 4,
      lora_alpha: 8,
      lora_dropout: 0.1,
      target_modules: ['q_proj', 'v_proj'],
      rank_pattern: {},
    });
    expect(files.map(({ fileName }) => fileName)).toContain('base/model.safetensors');
    expect(existsSync(join(folder, 'base', 'tokenizer.json'))).toBe(true);
    disposeRun(run);
  });

  it('as q8_0 reports the largest error and what is stored otherwise', async () => {
    const run = await trainedRun();
    const { manifest } = await exported(run, { format: 'gguf', weightType: 'q8_0' });
    expect(manifest.castErrorMax).toBeGreaterThan(0);
    expect(manifest.castErrorMax).toBeLessThan(0.01);
    expect(manifest.exceptions).toEqual(
      [0, 1].map((block) => ({
        tensor: `blk.${block}.ffn_down.weight`,
        dtype: 'F16',
        reason: 'rows of 48 values are no multiple of 32',
      })),
    );
    await expect(exported(run, { weightType: 'q8_0' })).rejects.toThrow('outside of GGUF, found q8_0');
    disposeRun(run);
  });
});
