import { rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { syncFolder } from '../../store/folders.js';

/** Gives a folder whose files are synced its final name, durably. */
export async function publish(temporary: string, folder: string): Promise<void> {
  await syncFolder(temporary);
  await rename(temporary, folder);
  await syncFolder(dirname(folder));
  await syncFolder(dirname(dirname(folder)));
}
