import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { readOomKills, whyKilled } from '../../server/dist/trainer/outOfMemory.js';
import { temporaryFolder } from './parts.js';

test('a SIGKILL is laid on want of memory only when the kernel has counted one', () => {
  const file = join(temporaryFolder(), 'vmstat');
  writeFileSync(file, 'pgfault 77\noom_kill 4\noom_kill_other 9\n');
  const before = readOomKills(file);
  expect(before).toBe(4);
  expect(whyKilled(before, 4)).toContain('no lack of memory');
  expect(whyKilled(before, 5)).toContain('memory ran out');
});

test('where the kernel does not tell, nothing is claimed', () => {
  const file = join(temporaryFolder(), 'vmstat');
  expect(readOomKills(file)).toBeNull();
  writeFileSync(file, 'pgfault 77\n');
  expect(readOomKills(file)).toBeNull();
  expect(whyKilled(null, 5)).toContain('often a sign');
});
