import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const fixtures = fileURLToPath(new URL('../fixtures/', import.meta.url));
export const released = join(fixtures, 'released-0.1.0');

/** What 0.1.0 came to when it finished its folder; made by make.mjs beside the files. */
export const expected = JSON.parse(readFileSync(join(released, 'expected.json'), 'utf8')) as {
  /** Where the base weights of jobs lay that name them by path. */
  baseWeights: string;
  requestIds: Record<'create' | 'restart' | 'export', string>;
  /** What CreateJob was asked for when it made the job `queued`, as JSON. */
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
  /** The first step that it took itself. */
  firstStep: number;
  losses: (number | null)[];
  specSha256: string;
  origin?: { job: string; step: number };
}

/** A data folder as a killed server of 0.1.0 left it, moved to another place with the base weights that its jobs name. */
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
 * Of base weights that a job names by path, a job that has begun needs none any more, and its hash has the path in it; one that is
 * queued gets the new place. In a process of its own, as `libsql` keeps the lock of a file that it has closed; that process ends
 * without closing it, so that the server still finds the log that the killed one left.
 */
function rewritePath(dataFolder: string, before: string, after: string): void {
  const script = `
    const [file, before, after] = process.argv.slice(1);
    const store = new (require('libsql'))(file);
    store.prepare("update jobs set spec = replace(spec, ?, ?) where state = 'queued'").run(before, after);
    process.kill(process.pid, 'SIGKILL');`;
  const args = ['-e', script, join(dataFolder, 'store.db'), `"${before}"`, `"${after}"`];
  const { signal, stderr } = spawnSync(process.execPath, args, { cwd: fixtures, encoding: 'utf8' });
  if (signal !== 'SIGKILL') throw new Error(`The path could not be rewritten: ${stderr}`);
}
