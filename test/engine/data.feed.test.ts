import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, ftruncateSync, openSync, readFileSync, utimesSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { describe, expect, it, onTestFinished } from 'vitest';
import { beginRun, disposeRun, openDevice } from '@relora/engine';
import { Dataset, permutation, TokenSplit, TrainingData, type BatchFeed } from '@relora/engine/data';
import { dataFolder, failure, sentences } from './dataFixtures.js';
import { runLoop, temporaryFolders, tinySpec } from './tinyRun.js';

const { source, prepare } = dataFolder();
const newFolder = temporaryFolders();

const mixture = [
  { dataset: 'datasets/a', weight: 2 },
  { dataset: 'datasets/b', weight: 1 },
];
const spec = tinySpec({ mixture, batch: { sequenceLength: 16, sequenceCount: 4 } });

async function opened(): Promise<{ data: TrainingData; sources: Dataset[] }> {
  const limits = { shardBytesMax: 1000 };
  const folders = [
    await prepare([source('a.txt', sentences(60), 'text')], { limits, heldOutShare: 0.2 }),
    await prepare([source('b.txt', sentences(40), 'text')], { limits }),
  ];
  const sources = await Promise.all(folders.map(async (path) => await Dataset.open(path, { verify: true })));
  onTestFinished(() => void sources.map((each) => each.close()));
  return { data: new TrainingData(spec, sources), sources };
}

function feedOf(data: TrainingData, checkedPath: string | null = null): BatchFeed {
  const feed = data.feed(checkedPath);
  onTestFinished(() => feed.close());
  return feed;
}

const shardOf = ({ folder, manifest }: Dataset): string => join(folder, manifest.train.shards[0]!.file);

/** Flips one bit in the middle of a file, like a disk fault. */
function damage(path: string): void {
  const file = openSync(path, 'r+');
  writeSync(file, Buffer.of(readFileSync(path)[7]! ^ 1), 0, 1, 7);
  closeSync(file);
}

describe('the thread that reads for a run', () => {
  it('gives what would be read in this thread, ahead or not, in any order', async () => {
    const { data } = await opened();
    const feed = feedOf(data);
    for (const [first, count, next] of [
      [0, 4, 4],
      [4, 4, 8],
      [40, 8, 0], // omitted steps
      [3, 2, 3],
      [9_000, 5, 0], // epochs later
    ] as const) {
      const batch = await feed.read(first, count);
      feed.prepare(next, count);
      const { inputs, targets, documents } = await data.batches().read(first, count);
      expect(batch).toEqual({ inputs, targets, documents });
    }
  });

  it('finds a shard whose digest is wrong before anything is trained on it', async () => {
    const { data, sources } = await opened();
    damage(shardOf(sources[0]!));
    const error = await failure(feedOf(data).read(0, 200), 'DATASET_CORRUPT');
    expect(error.message).toMatch(/train-00000\.bin: expected SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}$/);
  });

  it('checks each shard once for a job, not for each attempt', async () => {
    const { data, sources } = await opened();
    const checked = join(newFolder(), 'checked.json');
    const path = shardOf(sources[0]!);
    const time = new Date(1_700_000_000_000);
    utimesSync(path, time, time);
    await feedOf(data, checked).read(0, 200);
    // Only the digest shows this damage: if nothing fails, the file was not verified again.
    damage(path);
    utimesSync(path, time, time);
    await feedOf(data, checked).read(0, 200);
    await failure(feedOf(data).read(0, 200), 'DATASET_CORRUPT');
    // With a changed time it is verified again.
    utimesSync(path, time, new Date(time.getTime() + 5000));
    await failure(feedOf(data, checked).read(0, 200), 'DATASET_CORRUPT');
  });

  it('reports what the disk refuses as the system does, with code and path', async () => {
    const { data } = await opened();
    const path = join(newFolder(), 'missing', 'checked.json');
    const refused = feedOf(data, path).read(0, 4);
    await expect(refused).rejects.toMatchObject({ code: 'ENOENT', syscall: 'open', path: `${path}.tmp` });
  });

  it('finds a data set that is written into, or cut off, under a run', async () => {
    for (const change of [
      damage,
      (path: string) => {
        const file = openSync(path, 'r+');
        ftruncateSync(file, 100);
        closeSync(file);
      },
    ]) {
      const { data, sources } = await opened();
      const feed = feedOf(data);
      await feed.read(0, 200);
      change(shardOf(sources[0]!));
      const error = await failure(feed.read(200, 200), 'DATASET_CORRUPT');
      expect(error.message).toMatch(/train-00000\.bin: expected .*(as when the run began|bytes), got /);
    }
  });

  it('ends a run with that reason, which another attempt finds again', async () => {
    const { sources } = await opened();
    const device = await openDevice({ device: 'native', precision: 'float32', threads: 1 });
    const options = { spec, device, dataset: sources[0]!, mixture: sources, attempt: 1 };
    const run = await beginRun({ ...options, runFolder: newFolder() });
    const ended = runLoop(run, (event) => {
      if (event.kind === 'step' && event.step === 5) damage(shardOf(sources[0]!));
      return false;
    });
    await failure(ended, 'DATASET_CORRUPT');
    disposeRun(run);
    const again = await beginRun({ ...options, runFolder: run.folder, attempt: 2 });
    await failure(runLoop(again), 'DATASET_CORRUPT');
    disposeRun(again);
    device.close();
  });
});

describe('more than 2^31 tokens', () => {
  it('are read by their positions', () => {
    const folder = newFolder();
    const tokens = 2 ** 31 + 1000;
    const file = openSync(join(folder, 'train-00000.bin'), 'w');
    ftruncateSync(file, 2 * tokens); // a hole, which takes no disk space
    writeSync(file, Uint16Array.of(11, 12, 13), 0, 6, 2 * (tokens - 3));
    closeSync(file);
    const mask = openSync(join(folder, 'train-00000.mask'), 'w');
    ftruncateSync(mask, tokens / 8);
    writeSync(mask, Buffer.of(0b1010_0000), 0, 1, tokens / 8 - 1);
    closeSync(mask);
    const shard = {
      file: 'train-00000.bin',
      tokens,
      sha256: '',
      mask: { file: 'train-00000.mask', sha256: '' },
    };
    const split = new TokenSplit(folder, [shard, shard], 2);
    for (const end of [tokens, 2 * tokens]) {
      const found = split.read(end - 4, 4);
      expect([...found]).toEqual([0, 11, 12, 13]);
      split.mask(end - 4, found);
      expect([...found]).toEqual([-1, 11, -1, 13]);
    }
    split.close();
  });

  it('have an order, as many sequences as there may be', () => {
    const length = 2 ** 43 + 12_345;
    const at = permutation(length, 1, 0);
    const seen = Array.from({ length: 2000 }, (_, index) => at(length - 1 - index));
    expect(seen.every((value) => Number.isInteger(value) && value >= 0 && value < length)).toBe(true);
    expect(new Set(seen).size).toBe(2000);
    expect(seen.filter((value) => value > length / 2).length / 2000).toBeCloseTo(0.5, 1);
  });
});

describe('a run of steps without arithmetic', () => {
  const script = fileURLToPath(new URL('feedSteps.mjs', import.meta.url));
  const stepCount = 2000;

  it(
    'reads the same data in the same order, however often its process is killed',
    { timeout: 600_000 },
    async () => {
      const { data, sources } = await opened();
      const folders = sources.map(({ folder }) => folder);
      const runFolder = newFolder();
      const digests: string[] = [];
      for (let kills = 0; digests.length < stepCount; kills++) {
        const child = spawn(
          process.execPath,
          [script, JSON.stringify({ spec, folders, runFolder, first: digests.length, stepCount })],
          {
            stdio: ['ignore', 'pipe', 'inherit'],
          },
        );
        const exit = once(child, 'exit');
        const until = digests.length + 61 + 37 * (kills % 5);
        for await (const line of createInterface({ input: child.stdout })) {
          const [step, digest] = line.split(' ');
          if (digests.length >= until) continue; // printed before the kill took effect
          expect(Number(step)).toBe(digests.length);
          digests.push(digest!);
          if (digests.length === until) child.kill('SIGKILL');
        }
        await exit;
        if (digests.length >= stepCount) expect(kills).toBeGreaterThan(10);
      }
      const batches = data.batches();
      for (const step of [0, 1, 777, stepCount - 1]) {
        const { inputs, targets } = await batches.read(4 * step, 4);
        expect(digests[step]).toBe(createHash('sha256').update(inputs).update(targets).digest('hex'));
      }
      const whole = spawn(
        process.execPath,
        [script, JSON.stringify({ spec, folders, runFolder: newFolder(), first: 0, stepCount })],
        {
          stdio: ['ignore', 'pipe', 'inherit'],
        },
      );
      const undisturbed: string[] = [];
      for await (const line of createInterface({ input: whole.stdout }))
        undisturbed.push(line.split(' ')[1]!);
      expect(digests).toEqual(undisturbed);
    },
  );
});
