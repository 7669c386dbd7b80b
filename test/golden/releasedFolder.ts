import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const fixtures = fileURLToPath(new URL('../fixtures/', import.meta.url));
export const released = join(fixtures, 'released-0.1.0');

/** Results of 0.1.0 for its folder; written by make.mjs, together with the files. */
export const expected = JSON.parse(readFileSync(join(released, 'expected.json'), 'utf8')) as {
  /** Folder of the base weights that jobs name by path. */
  baseWeights: string;
  requestIds: Record<'create' | 'restart' | 'export', string>;
  /** The request with which the job `queued` was created, as JSON. */
  queuedSpec: object;
  jobs: Record<string, ReleasedJob>;
  /** SHA-256 of files, by artifact. */
  exports: Record<string, Hashes>;
  datasets: Record<string, { state: string; manifestSha256: string; reason: string }>;
};

export type Hashes = Record<string, string>;

interface ReleasedJob {
  pausedAtStep?: number;
  artifacts: Record<string, Hashes>;
  /** The first step after its resume. */
  firstStep: number;
  losses: (number | null)[];
  specSha256: string;
  origin?: { job: string; step: number };
}

/** A data folder as left by a killed server of 0.1.0, copied to another place together with the base weights that its jobs name. */
export function releasedFolder(): { dataFolder: string; baseWeights: string; remove: () => void } {
  const folder = mkdtempSync(join(tmpdir(), 'relora-released-'));
  execFileSync('tar', ['xzf', join(released, 'data-folder.tgz'), '-C', folder]);
  const baseWeights = join(folder, 'base-weights');
  cpSync(join(fixtures, 'transformers/bytes-bfloat16'), baseWeights, { recursive: true });
  const dataFolder = join(folder, 'data');
  rewritePath(dataFolder, expected.baseWeights, baseWeights);
  const remove = () => rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  return { dataFolder, baseWeights, remove };
}

/**
 * Updates the path of base weights. A job that has already begun no longer needs its base weights, and has the path in its hash; a queued
 * job gets the new path. Runs in a separate process, because the lock of a file may outlive its connection; that process exits
 * without closing it, so that the server still finds the log left by the killed one.
 */
function rewritePath(dataFolder: string, before: string, after: string): void {
  const script = `
    const [file, before, after] = process.argv.slice(1);
    const store = new (require('@photostructure/sqlite').DatabaseSync)(file);
    store.prepare("update jobs set spec = replace(spec, ?, ?) where state = 'queued'").run(before, after);
    process.kill(process.pid, 'SIGKILL');`;
  const args = ['-e', script, join(dataFolder, 'store.db'), `"${before}"`, `"${after}"`];
  const { signal, stderr } = spawnSync(process.execPath, args, { cwd: fixtures, encoding: 'utf8' });
  if (signal !== 'SIGKILL') throw new Error(`The path could not be rewritten: ${stderr}`);
}
