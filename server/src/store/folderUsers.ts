import { rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

/** Who uses which folders of this machine: one in use is deleted when its last user is done. */
export class FolderUsers {
  /** Number of users, by folder or owner. */
  private readonly counts = new Map<string, number>();
  /** The inodes of folders to delete: another folder of that name stays. */
  private readonly leaving = new Map<string, number>();

  constructor(private readonly dataFolder: string) {}

  /** The returned function ends the use; calling it again does nothing. */
  use(folder: string): () => void {
    this.counts.set(folder, (this.counts.get(folder) ?? 0) + 1);
    let isUsed = true;
    return () => {
      if (!isUsed) return;
      isUsed = false;
      const count = this.counts.get(folder)! - 1;
      if (count > 0) return void this.counts.set(folder, count);
      this.counts.delete(folder);
      // Like a crash here, an error leaves a folder without a row; it is deleted with its job at the latest.
      this.deleteLeaving(folder).catch(() => {});
    };
  }

  /** Whether an owner, such as `jobs/…`, or a folder of it is in use. */
  isUsed(owner: string): boolean {
    for (const folder of this.counts.keys())
      if (folder === owner || folder.startsWith(`${owner}/`)) return true;
    return false;
  }

  /** Deletes a folder now, or when its last user is done. */
  async remove(folder: string): Promise<void> {
    const inode = await this.inodeOf(folder);
    if (inode === undefined) return;
    this.leaving.set(folder, inode);
    if (!this.counts.has(folder)) await this.deleteLeaving(folder);
  }

  private async deleteLeaving(folder: string): Promise<void> {
    const inode = this.leaving.get(folder);
    if (inode === undefined) return;
    this.leaving.delete(folder);
    if ((await this.inodeOf(folder)) === inode)
      await rm(join(this.dataFolder, folder), { recursive: true, force: true });
  }

  private async inodeOf(folder: string): Promise<number | undefined> {
    const stats = await stat(join(this.dataFolder, folder)).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return undefined;
      throw error;
    });
    return stats?.ino;
  }
}
