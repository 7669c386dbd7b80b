import { rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { syncFolder } from '../../store/folders.js';

/** Durably gives a folder with synced files its final name. */
export async function publish(temporary: string, folder: string): Promise<void> {
  await syncFolder(temporary);
  await rename(temporary, folder);
  await syncFolder(dirname(folder));
  await syncFolder(dirname(dirname(folder)));
}
