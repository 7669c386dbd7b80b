import { existsSync } from 'node:fs';
import { open, unlink, type FileHandle } from 'node:fs/promises';
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { sharedMemoryBytes } from '@relora/engine/plan';

/** File descriptor of the shared memory in a rank, after that of the heartbeat. */
export const rankMemoryFile = 5;

/** Folder for files in memory, where the system has it: they are never written to a disk. */
const memoryFolder = '/dev/shm';
const blockBytes = 2 ** 20;

/**
 * The memory that the ranks of a job share: an open file without a name, which disappears with the last process that has it open. It is
 * written here, so that a lack of space is an error now; later, a rank that finds no space would be killed.
 */
export async function openRankMemory(size: number, jobFolder: string): Promise<FileHandle> {
  try {
    if (existsSync(memoryFolder)) return await make(memoryFolder, size);
  } catch {
    // By default, containers have little of it.
  }
  return await make(jobFolder, size);
}

async function make(folder: string, size: number): Promise<FileHandle> {
  const path = join(folder, `.relora-ranks-${randomBytes(8).toString('hex')}`);
  const file = await open(path, 'wx+', 0o600);
  try {
    await unlink(path);
    const zeros = new Uint8Array(blockBytes);
    for (let written = 0, bytes = sharedMemoryBytes(size); written < bytes;)
      written += (await file.write(zeros, 0, Math.min(blockBytes, bytes - written), written)).bytesWritten;
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}
