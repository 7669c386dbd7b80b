import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const preload = fileURLToPath(new URL('./clockOffset.cjs', import.meta.url));

/** Clocks of the servers of a World, which can be set while servers run. */
export class Clocks {
  readonly settings: Record<string, string> = {
    NODE_OPTIONS: `--require ${preload}`,
    TEST_CLOCK_FILE: '{folder}/clock',
  };
  private readonly folders = new Set<string>();

  /** Sets by how much the clock of the server with this data folder is wrong. */
  set(folder: string, offsetMs: number): void {
    this.folders.add(folder);
    writeFileSync(join(folder, 'clock'), String(offsetMs));
  }

  setAll(offsetMs: number): void {
    for (const folder of this.folders) this.set(folder, offsetMs);
  }
}
