import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';

/** What servers hold in memory, without garbage: that comes and goes by a hundred megabytes, whenever V8 sees fit to collect it. */
export class HeldMemory {
  private readonly folder = mkdtempSync(join(tmpdir(), 'relora-memory-'));
  readonly settings = {
    NODE_OPTIONS: `--require ${fileURLToPath(new URL('./heldMemory.cjs', import.meta.url))}`,
    HELD_MEMORY_FOLDER: this.folder,
  };

  /** Collects the garbage of a server and returns how many bytes are left. */
  async bytes(pid: number): Promise<number> {
    const path = join(this.folder, String(pid));
    rmSync(path, { force: true });
    process.kill(pid, 'SIGUSR2');
    await expect.poll(() => existsSync(path)).toBe(true);
    return Number(readFileSync(path, 'utf8'));
  }

  close(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}
