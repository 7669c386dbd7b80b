import { spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { sharedFile } from '../engine/rankRuns.js';
import { patienceMs } from '../patience.mjs';
import { modelOptions } from './modelPaths.js';

interface RingResult {
  /** Bytes of each sum. */
  sums: string[];
  library: string | null;
  libraries?: Record<string, string>;
  problem?: { reason?: string; message: string };
  /** What the model of a card reports. */
  faults: string[];
}

interface RingOrder {
  size: number;
  lengths?: readonly number[];
  /** The last rank is killed before this sum. */
  diesAt?: number;
  /** Differences of single ranks from a card of their own with the library. */
  options?: readonly object[];
  environment?: Record<string, string>;
}

const program = fileURLToPath(new URL('./ringProcess.mjs', import.meta.url));
const lengths = [1, 17, 16_384, 40_001];
const { libraries } = modelOptions;
const without = { libraries: { ...libraries, collectives: [] } };

/** The result of each rank; null for one that was killed. */
async function add({ size, options = [], environment = {}, ...order }: RingOrder) {
  const file = sharedFile(size);
  const env = { ...process.env, CUDA_MODEL_DEVICE_COUNT: String(size), ...environment };
  const children = Array.from({ length: size }, (_, rank) => {
    const own = { ...modelOptions, ordinal: rank, ...options[rank] };
    const text = JSON.stringify({ lengths, ...order, rank, size, options: own });
    return spawn(process.execPath, [program, text], { stdio: ['ignore', 'pipe', 'inherit', file], env });
  });
  closeSync(file);
  return await Promise.all(
    children.map(async (child) => {
      let text = '';
      child.stdout!.setEncoding('utf8').on('data', (more: string) => (text += more));
      await new Promise((resolve) => child.once('close', resolve));
      if (text === '') return null;
      const result = JSON.parse(text) as RingResult;
      expect(result.faults).toEqual([]);
      return result;
    }),
  );
}

describe('sums over cards by NCCL', () => {
  it.each([2, 3])(
    'have the bits of sums through the host where NCCL adds in the order of ranks: %d ranks',
    async (size) => {
      const direct = await add({ size });
      const throughHost = await add({ size, options: Array.from({ length: size }, () => without) });
      expect(direct).toHaveLength(size);
      for (const result of direct) {
        expect(result).toMatchObject({ library: 'nccl 2.27.3', libraries: { nccl: '2.27.3' } });
        expect(result!.sums).toEqual(throughHost[0]!.sums);
      }
      expect(throughHost[0]!.library).toBeNull();
      expect(throughHost[0]!.libraries).not.toHaveProperty('nccl');
    },
    patienceMs,
  );

  it.each([
    ['one rank has no NCCL', [{}, without]],
    ['two ranks have the same card', [{}, { ordinal: 0 }]],
  ])(
    'are made through the host by all ranks if %s',
    async (_, options) => {
      const results = await add({ size: 2, options });
      expect(results.map((result) => result?.library)).toEqual([null, null]);
      expect(results[0]!.sums).toHaveLength(lengths.length);
      expect(results[1]!.sums).toEqual(results[0]!.sums);
    },
    patienceMs,
  );

  it(
    'fail in the others if a rank is killed, and these end',
    async () => {
      const [survivor, killed] = await add({ size: 2, diesAt: 2 });
      expect(killed).toBeNull();
      expect(survivor!.sums).toHaveLength(2);
      expect(survivor!.problem).toEqual({
        reason: 'RANK_LOST',
        message:
          'The ranks cannot continue: adding over the cards: remote process exited or there was a network error',
      });
    },
    patienceMs,
  );

  it(
    'fail with what NCCL says if it cannot make them',
    async () => {
      const results = await add({ size: 2, environment: { CUDA_MODEL_FAIL_AFTER_SUMS: '1' } });
      for (const result of results) {
        expect(result!.sums).toHaveLength(1);
        expect(result!.problem).toMatchObject({
          reason: 'RANK_LOST',
          message: 'The ranks cannot continue: adding over the cards: unhandled system error',
        });
      }
    },
    patienceMs,
  );
});
