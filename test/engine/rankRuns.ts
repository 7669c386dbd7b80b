import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, mkdirSync, openSync, unlinkSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { sharedMemoryBytes, type RunSpec, type TrainingEvent } from '@relora/engine';

/** Result of a rank, or why it failed. */
export interface RankResult {
  events: TrainingEvent[];
  /** The first values of each parameter. */
  weights: Record<string, number[]>;
  weightsSha256: string;
  momentsSha256: string;
  checkpointPath?: string;
  summedBytes: number;
  problem?: { reason?: string; message: string };
}

export interface RankOrder {
  spec: RunSpec;
  size: number;
  datasetFolder: string;
  /** Contains a folder for each rank. */
  folder: string;
  checkpointPath?: string | undefined;
  /** Rank 0 is asked to stop after this step. */
  stopAfter?: number;
  device?: string;
  /** Different options for individual ranks. */
  orders?: readonly { datasetFolder?: string; spoilsWeightAt?: number; overlaps?: boolean }[];
}

const program = fileURLToPath(new URL('./rankProcess.mjs', import.meta.url));

/** Executes a run with ranks in separate processes that share memory; returns each one's result, null for one that was killed. */
export async function runRanks({
  size,
  folder,
  orders = [],
  ...order
}: RankOrder): Promise<(RankResult | null)[]> {
  const file = sharedFile(size);
  const children = Array.from({ length: size }, (_, rank) => {
    const runFolder = join(folder, rank === 0 ? 'run' : `rank-${rank}`);
    mkdirSync(runFolder, { recursive: true });
    const own = JSON.stringify({ ...order, rank, size, runFolder, ...orders[rank] });
    return spawn(process.execPath, [program, own], { stdio: ['ignore', 'pipe', 'inherit', file] });
  });
  closeSync(file);
  return await Promise.all(children.map(resultOf));
}

/** An unnamed file of zeros. With fewer bytes than a trainer's, sums are made in more pieces. */
export function sharedFile(size: number, bytes = sharedMemoryBytes(size)): number {
  const path = join(tmpdir(), `relora-ranks-${process.pid}-${Math.random().toString(36).slice(2)}`);
  const file = openSync(path, 'wx+', 0o600);
  unlinkSync(path);
  writeSync(file, new Uint8Array(bytes), 0, bytes, 0);
  return file;
}

async function resultOf(child: ChildProcess): Promise<RankResult | null> {
  let text = '';
  child.stdout!.setEncoding('utf8').on('data', (more: string) => (text += more));
  await new Promise((resolve) => child.once('close', resolve));
  const line = text.trim().split('\n').at(-1) ?? '';
  return line === '' ? null : (JSON.parse(line) as RankResult);
}
