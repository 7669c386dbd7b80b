import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { temporaryFolders } from './tinyRun.js';

const bench = fileURLToPath(new URL('../../bench/peakMemory.mjs', import.meta.url));
const newFolder = temporaryFolders();

interface Row {
  estimateBytes: number;
  peaks: { kind: 'step' | 'restart'; bytes: number }[];
}

// The size of a small model is mostly that of Node: from llama-20m on the estimate is within a twentieth of the peak.
it.each(['int8Base', 'float32'])(
  'a run over two restarts holds at most what is estimated: %s',
  (precision) => {
    const cells = join(newFolder(), 'cells.jsonl');
    execFileSync(process.execPath, [bench, '--cells', cells, `llama-20m:${precision}`], { stdio: 'ignore' });
    const { row } = JSON.parse(readFileSync(cells, 'utf8')) as { row: Row };
    expect(row.peaks.filter(({ kind }) => kind === 'restart')).toHaveLength(2);
    const ratio = row.estimateBytes / row.peaks.at(-1)!.bytes;
    expect(ratio).toBeGreaterThan(0.95);
    expect(ratio).toBeLessThan(1.05);
  },
);
