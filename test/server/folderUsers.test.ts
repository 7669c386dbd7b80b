import { existsSync, mkdirSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { FolderUsers } from '../../server/dist/store/folderUsers.js';
import { patienceMs } from '../patience.mjs';
import { claim, openParts, submit, temporaryFolder } from './parts.js';

it('a folder is deleted when its last user is done, and not another one of its name', async () => {
  const root = temporaryFolder();
  const users = new FolderUsers(root);
  const make = (name: string): string => {
    mkdirSync(join(root, name));
    return join(root, name);
  };
  const [unused, used, remade] = [make('unused'), make('used'), make('remade')];
  const releases = ['used', 'used', 'remade'].map((name) => users.use(name));
  for (const name of ['unused', 'used', 'remade', 'missing']) await users.remove(name);
  expect([unused, used, remade].map((path) => existsSync(path))).toEqual([false, true, true]);
  renameSync(remade, `${remade}-before`);
  make('remade');
  releases[0]!();
  releases[0]!(); // does nothing
  expect(users.isUsed('used')).toBe(true);
  for (const release of releases) release();
  await expect.poll(() => existsSync(used), { timeout: patienceMs }).toBe(false);
  expect(existsSync(remade)).toBe(true);
});

it('the end of an attempt leaves what is still read of a checkpoint that its job has deleted', async () => {
  const parts = await openParts();
  const { id } = await submit(parts);
  await claim(parts);
  const folder = join(parts.dataFolder, 'jobs', id, 'checkpoints', 'step-00000005-1');
  mkdirSync(folder, { recursive: true }); // without a row, as after its deletion
  const release = await parts.stage.take(`jobs/${id}/checkpoints/step-00000005-1`);
  await parts.checkpoints.clearOrphans(id);
  expect(existsSync(folder)).toBe(true);
  release();
  await expect.poll(() => existsSync(folder), { timeout: patienceMs }).toBe(false);
});
