import { symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { verifyCheckpoint } from '@relora/engine';
import { Dataset } from '@relora/engine/data';
import { temporaryFolders } from './tinyRun.js';

const newFolder = temporaryFolders();

/** A folder with a file that can be opened, but whose every read fails with EIO. */
function onBrokenDisk(name: string): string {
  const folder = newFolder();
  symlinkSync('/proc/self/mem', join(folder, name));
  return folder;
}

// Called damaged, a job would fail for good, or give up a whole checkpoint.
describe.skipIf(process.platform !== 'linux')('a disk that cannot be read makes nothing damaged:', () => {
  it('a data set', async () => {
    await expect(Dataset.open(onBrokenDisk('manifest.json'), { verify: true })).rejects.toMatchObject({
      code: 'EIO',
    });
    await expect(Dataset.open(newFolder(), { verify: true })).rejects.toMatchObject({
      reason: 'DATASET_CORRUPT',
    });
  });

  it('a checkpoint', async () => {
    await expect(verifyCheckpoint(onBrokenDisk('manifest.json'))).rejects.toMatchObject({ code: 'EIO' });
    await expect(verifyCheckpoint(newFolder())).rejects.toMatchObject({ reason: 'CHECKPOINT_CORRUPT' });
  });
});
