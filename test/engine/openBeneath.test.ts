import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { NotBeneath, openBeneath, openWithoutLinks } from '@relora/engine/files';

/** An allowed folder with `sub/deep/file.txt`, and one with the same content outside of it. */
function folders() {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'relora-beneath-')));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  const [allowed, outside] = [join(folder, 'allowed'), join(folder, 'outside')];
  for (const where of [allowed, outside]) {
    mkdirSync(join(where, 'sub', 'deep'), { recursive: true });
    writeFileSync(join(where, 'sub', 'deep', 'file.txt'), where === allowed ? 'inside' : 'secret');
  }
  return { folder, allowed, outside, path: join(allowed, 'sub', 'deep', 'file.txt') };
}

async function content(roots: string[], path: string, options = {}): Promise<string> {
  const { handle } = await openBeneath(roots, path, options);
  try {
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}

const ways = [
  ['with held folders', async () => true],
  ['without', async () => false],
] as const;

describe.each(ways)('a file beneath a folder, %s', (_, holdsFolders) => {
  it('opens by names of our own through no link, wherever it leads', async () => {
    const { folder, allowed } = folders();
    const opens = async (names: string[]) => {
      const handle = await openWithoutLinks(join(folder, 'alias'), names, { holdsFolders });
      await handle.close();
    };
    symlinkSync(allowed, join(folder, 'alias'));
    symlinkSync('deep', join(allowed, 'sub', 'again'));
    symlinkSync('file.txt', join(allowed, 'sub', 'deep', 'link.txt'));
    await opens(['sub', 'deep', 'file.txt']);
    for (const names of [
      ['sub', 'again', 'file.txt'],
      ['sub', 'deep', 'link.txt'],
      ['sub', 'nothing'],
      ['..', 'outside', 'sub', 'deep', 'file.txt'],
      ['../outside/sub/deep/file.txt'],
    ])
      await expect(opens(names), names.join('/')).rejects.toBeInstanceOf(NotBeneath);
  });

  it('opens by its path, through links within the folders, at the folder itself', async () => {
    const { folder, allowed, path } = folders();
    expect(await content([allowed], path, { holdsFolders })).toBe('inside');
    symlinkSync(join('..', 'sub', 'deep', 'file.txt'), join(allowed, 'sub', 'link.txt'));
    symlinkSync(join('sub', 'deep'), join(allowed, 'short'));
    symlinkSync(allowed, join(folder, 'alias'));
    for (const other of ['allowed/sub/link.txt', 'allowed/short/file.txt', 'alias/short/file.txt'])
      expect(await content([join(folder, 'alias')], join(folder, other), { holdsFolders })).toBe('inside');
    const opened = await openBeneath([allowed], allowed, { holdsFolders });
    expect((await opened.handle.stat()).isDirectory()).toBe(true);
    expect(opened.path).toBe(allowed);
    await opened.handle.close();
  });

  it('and what is not is refused with one answer, there or not', async () => {
    const { folder, allowed, outside, path } = folders();
    symlinkSync(join(outside, 'sub'), join(allowed, 'leak'));
    symlinkSync(join(outside, 'sub', 'deep', 'file.txt'), join(allowed, 'leak.txt'));
    const paths = [
      join(outside, 'sub', 'deep', 'file.txt'),
      join(allowed, 'leak', 'deep', 'file.txt'),
      join(allowed, 'leak.txt'),
      join(allowed, '..', 'outside', 'sub', 'deep', 'file.txt'),
      join(allowed, 'nothing'),
      join(folder, 'allowed-too'),
      'sub/deep/file.txt',
      `${path}\0`,
    ];
    for (const bad of paths)
      await expect(openBeneath([allowed], bad, { holdsFolders }), bad).rejects.toBeInstanceOf(NotBeneath);
    await expect(openBeneath([], path, { holdsFolders })).rejects.toBeInstanceOf(NotBeneath);
  });

  it.each(['sub', 'sub/deep', 'sub/deep/file.txt'])(
    'is never read elsewhere when %s becomes a link between the look and the opening',
    async (swapped) => {
      const { allowed, outside, path } = folders();
      let looks = 0;
      const swap = async () => {
        if (looks++ === 0) {
          renameSync(join(allowed, swapped), join(allowed, 'before'));
          symlinkSync(join(outside, swapped), join(allowed, swapped));
        }
        return await holdsFolders();
      };
      await expect(openBeneath([allowed], path, { holdsFolders: swap })).rejects.toBeInstanceOf(NotBeneath);
      expect(looks).toBe(1); // the second look finds that the path leads out

      // A link that leads elsewhere within the folder is followed.
      rmSync(join(allowed, swapped));
      renameSync(join(allowed, 'before'), join(allowed, swapped));
      looks = 0;
      const within = async () => {
        if (looks++ === 0) {
          renameSync(join(allowed, swapped), join(allowed, 'before'));
          symlinkSync(join(allowed, 'before'), join(allowed, swapped));
        }
        return await holdsFolders();
      };
      expect(await content([allowed], path, { holdsFolders: within })).toBe('inside');
      expect(looks).toBe(2);
    },
  );
});

const swapper = `
  import { renameSync, symlinkSync, unlinkSync } from 'node:fs';
  const [allowed, outside] = process.argv.slice(1);
  process.stdout.write('ready');
  // Waits of other lengths while the folder is in place: a slow reader gets through, and is overtaken as well.
  const still = new Int32Array(new SharedArrayBuffer(4));
  for (;;) {
    Atomics.wait(still, 0, 0, Math.random());
    renameSync(allowed + '/sub', allowed + '/before');
    symlinkSync(outside + '/sub', allowed + '/sub');
    unlinkSync(allowed + '/sub');
    renameSync(allowed + '/before', allowed + '/sub');
  }`;

/** By a path from people, and by names of our own below the folder. */
const openings = {
  'by a path': content,
  'by names': async ([allowed]: string[]): Promise<string> => {
    const handle = await openWithoutLinks(allowed!, ['sub', 'deep', 'file.txt']);
    try {
      return await handle.readFile('utf8');
    } finally {
      await handle.close();
    }
  },
};

it.each(Object.entries(openings))(
  'is never read elsewhere while a parent is swapped, %s',
  async (_, open) => {
    const { allowed, outside, path } = folders();
    const child = spawn(process.execPath, ['--input-type=module', '-e', swapper, allowed, outside], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    onTestFinished(() => void child.kill('SIGKILL'));
    await new Promise((resolve) => child.stdout.once('data', resolve));
    const seen = { inside: 0, refused: 0 };
    for (let tries = 0; tries < 3000; tries++) {
      const read = await open([allowed], path).catch((error: unknown) => {
        if (!(error instanceof NotBeneath)) throw error;
        return null;
      });
      expect(read).not.toBe('secret');
      if (read === null) seen.refused++;
      else seen.inside++;
    }
    expect(seen.inside).toBeGreaterThan(0);
    expect(seen.refused).toBeGreaterThan(0);
  },
);

it('leaves no folder open', async () => {
  const { allowed, outside, path } = folders();
  symlinkSync(outside, join(allowed, 'leak'));
  const open = () => readFileSync('/proc/self/status', 'utf8').match(/FDSize:\s+(\d+)/)![1];
  const before = open();
  for (let i = 0; i < 2000; i++) {
    await content([allowed], path);
    await openBeneath([allowed], join(allowed, 'leak', 'sub')).catch(() => {});
    await openBeneath([allowed], join(path, 'file')).catch(() => {});
  }
  expect(open()).toBe(before);
  unlinkSync(join(allowed, 'leak'));
});

it('leaves no folder open where a file cannot be opened at all', async () => {
  const { allowed } = folders();
  const server = createServer().listen(join(allowed, 'socket'));
  onTestFinished(() => void server.close());
  await once(server, 'listening');
  await expect(openBeneath([allowed], join(allowed, 'socket'))).rejects.toMatchObject({ code: 'ENXIO' });
  const open = readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      return []; // the handle of the listing itself
    }
  });
  expect(open).not.toContain(allowed);
});
