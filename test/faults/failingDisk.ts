import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const source = fileURLToPath(new URL('./failingDisk.cpp', import.meta.url));

/** As in failingDisk.cpp. */
const modes = { sound: 0, full: 1, readOnly: 2, broken: 3, torn: 4 } as const;
export type DiskMode = keyof typeof modes;

/** A layer between a server (with its children) and their files, which makes calls fail. */
export interface FailingDisk {
  /** For a server of a World. */
  settings: Record<string, string>;
  /** From now on this many of a thousand calls that can fail do. */
  set(mode: DiskMode, permille?: number): void;
  /** Calls that failed so far. */
  readonly count: number;
  close(): void;
}

const compiler = ['g++', 'clang++'].find((name) => spawnSync(name, ['--version']).status === 0);

export const canFailDisk = process.platform === 'linux' && compiler !== undefined;

export function failingDisk(): FailingDisk {
  const folder = mkdtempSync(join(tmpdir(), 'relora-disk-'));
  const library = join(folder, 'failingDisk.so');
  const { status, stderr } = spawnSync(
    compiler!,
    ['-std=c++20', '-O1', '-shared', '-fPIC', '-o', library, source, '-ldl'],
    { encoding: 'utf8' },
  );
  if (status !== 0) throw new Error(`${source} does not compile: ${stderr}`);
  const path = join(folder, 'control');
  writeFileSync(path, Buffer.alloc(12));
  const control = openSync(path, 'r+');
  return {
    settings: {
      LD_PRELOAD: library,
      FAULTS_FOLDER: '{folder}',
      FAULTS_CONTROL: path,
      RELORA_SANDBOX: 'off', // a sandboxed child could not open the control file
    },
    set: (mode, permille = 1000) => void writeSync(control, Uint32Array.of(modes[mode], permille), 0, 8, 0),
    get count() {
      const count = new Uint32Array(1);
      readSync(control, count, 0, 4, 8);
      return count[0]!;
    },
    close: () => {
      closeSync(control);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}
