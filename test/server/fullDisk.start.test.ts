import { spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { ReloraClient } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { Reserve } from '../../server/dist/store/reserve.js';
import { startServerProcess } from '../e2e/serverProcess.js';
import { temporaryFolder } from './parts.js';

/** A store in a file, even if TEST_STORE says otherwise. */
const inFile = { RELORA_DATABASE_URL: '' };

/** A separate disk that can be filled to the last byte; null if this machine does not allow mounting one. */
function smallDisk(sizeBytes: number): { folder: string; fill(): void } | null {
  const folder = join(temporaryFolder(), 'disk');
  mkdirSync(folder);
  const { status } = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${sizeBytes}`, 'none', folder]);
  if (status !== 0) return null;
  onTestFinished(() => void spawnSync('umount', ['-l', folder]));
  const fill = (): void => {
    for (const pieceBytes of [2 ** 16, 1]) {
      const file = openSync(join(folder, `fill-${pieceBytes}`), 'a');
      try {
        for (;;) writeSync(file, Buffer.alloc(pieceBytes));
      } catch (error) {
        expect(error).toMatchObject({ code: 'ENOSPC' });
      } finally {
        closeSync(file);
      }
    }
  };
  return { folder, fill };
}

test('a server stops cleanly on a completely full disk, starts on it again and knows what it knew', async ({
  skip,
}) => {
  const disk = smallDisk(48 * 2 ** 20);
  if (disk === null) return skip('this machine lets us mount no disk');
  const dataFolder = join(disk.folder, 'data');
  const first = await startServerProcess(dataFolder, inFile);
  expect(statSync(join(dataFolder, 'reserve')).size).toBe(4 * 2 ** 20);
  const client = new ReloraClient({ address: first.grpcAddress });
  await client.uploadDataset({ datasetId: 'text', files: [{ content: 'Once upon a time. '.repeat(500) }] });
  await client.close();

  // The disk fills up while the server runs; ending the store's log needs space.
  disk.fill();
  first.process.kill('SIGTERM');
  expect(await first.exited).toEqual({ code: 0, signal: null });

  // Again, including the space that this freed: now there is no space to begin another log, and no reserve either.
  disk.fill();
  expect(existsSync(join(dataFolder, 'store.db-wal'))).toBe(false);
  rmSync(join(dataFolder, 'reserve'), { force: true });
  disk.fill();
  await expect(startServerProcess(dataFolder, inFile)).rejects.toThrow(
    'store.db cannot be used (the disk is full)',
  );

  // With a little space it starts, and it creates a reserve once there is more.
  rmSync(join(disk.folder, 'fill-65536'));
  const second = await startServerProcess(dataFolder, inFile);
  const again = new ReloraClient({ address: second.grpcAddress });
  expect((await again.getDataset('datasets/text')).name).toBe('datasets/text');
  await again.close();
  second.process.kill('SIGTERM');
  expect(await second.exited).toEqual({ code: 0, signal: null });
  disk.fill();
  expect(existsSync(join(dataFolder, 'reserve'))).toBe(true);

  // This is what the next start needs.
  const third = await startServerProcess(dataFolder, inFile);
  expect(existsSync(join(dataFolder, 'reserve'))).toBe(false);
  third.process.kill('SIGTERM');
  expect(await third.exited).toEqual({ code: 0, signal: null });
});

test('the reserve has the size that is asked for, and none is no file', () => {
  const folder = temporaryFolder();
  const file = join(folder, 'reserve');
  new Reserve(file, 3_000_000).keep();
  expect(statSync(file).size).toBe(3_000_000);
  new Reserve(file, 1000).keep();
  expect(statSync(file).size).toBe(1000);
  expect(new Reserve(file, 1000).release()).toBe(true);
  expect(new Reserve(file, 1000).release()).toBe(false);
  new Reserve(file, 1000).keep();
  new Reserve(file, 0).keep();
  expect(readdirSync(folder)).toEqual([]);
});
