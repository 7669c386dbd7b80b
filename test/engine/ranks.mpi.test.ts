import { execFile, spawn } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { describe, expect, it } from 'vitest';
import { Mpi, type RunSpec } from '@relora/engine';
import { launchers } from '../mpi.js';
import { runRanks, type RankResult } from './rankRuns.js';
import { licenseDataset, ofKind, temporaryFolders, tinySpec } from './tinyRun.js';

const newFolder = temporaryFolders();
const dataset = licenseDataset(newFolder);
const program = fileURLToPath(new URL('./rankProcess.mjs', import.meta.url));

const spec = tinySpec({ batch: { microBatchSequenceCount: 1 }, adapter: { dropout: 0.1 } });

async function orderOf(size: number, of: RunSpec = spec) {
  const folder = newFolder();
  for (let rank = 0; rank < size; rank++) mkdirSync(join(folder, String(rank)));
  return { folder, order: { spec: of, datasetFolder: (await dataset()).folder, mpiFolder: folder } };
}

describe.each(launchers)('ranks that $name starts', ({ command, flags, isMissing }) => {
  it.skipIf(isMissing).each([
    [2, 'float32'],
    [3, 'float32'],
    [3, 'bfloat16'],
  ] as const)(
    '%d of them have the bits that ranks have which share memory, in %s',
    async (size, reductionType) => {
      // The gradients of the head are more than a piece of a sum: they travel while those of the blocks are computed.
      const of = tinySpec({
        ...spec,
        model: { ...spec.model, vocabSize: 9000 },
        warmStart: { ...spec.warmStart, stepCount: 2, warmupStepCount: 1 },
        adapter: { ...spec.adapter, cycleStepCount: 3 },
        stepCount: 6,
        batch: { ...spec.batch, sequenceCount: 6 },
        reductionType,
      });
      const { folder, order } = await orderOf(size, of);
      const launched = [...flags, '-np', String(size), process.execPath, program, JSON.stringify(order)];
      await promisify(execFile)(command, launched);
      const results = Array.from(
        { length: size },
        (_, rank) => JSON.parse(readFileSync(join(folder, `${rank}.json`), 'utf8')) as RankResult,
      );
      const shared = await runRanks({
        ...{ spec: of, size, datasetFolder: order.datasetFolder, folder: newFolder() },
      });
      for (const [rank, result] of results.entries()) {
        expect(result.problem).toBeUndefined();
        expect(result.weightsSha256).toBe(shared[rank]!.weightsSha256);
        expect(result.momentsSha256).toBe(shared[rank]!.momentsSha256);
      }
      const losses = ({ events }: RankResult) => ofKind(events, 'step').map(({ loss }) => loss);
      expect(losses(results[0]!)).toEqual(losses(shared[0]!));
    },
  );

  it.skipIf(isMissing)('are all ended when one is killed within a sum', async () => {
    const { order } = await orderOf(2, tinySpec({ ...spec, stepCount: 100_000 }));
    const ending = JSON.stringify({ ...order, killsAt: 3 });
    const child = spawn(command, [...flags, '-np', '2', process.execPath, program, ending], {
      stdio: 'ignore',
    });
    const code = await new Promise((resolve) => child.once('close', resolve));
    expect(code).not.toBe(0);
  });
});

describe('UCX', () => {
  it('is configured before it is loaded: no memory hooks, and no handler of crashes', () => {
    const seen: NodeJS.ProcessEnv[] = [];
    const environment: NodeJS.ProcessEnv = { PMI_ID: '0', UCX_HANDLE_ERRORS: 'bt', UCX_TLS: 'tcp' };
    const addon = {
      openMpi: () => {
        seen.push({ ...environment });
        return { rank: 0, size: 1, exchange: {} };
      },
    } as unknown as ConstructorParameters<typeof Mpi>[1];
    new Mpi(environment, addon);
    expect(seen).toEqual([{ PMI_ID: '0', UCX_MEM_EVENTS: 'n', UCX_HANDLE_ERRORS: 'bt', UCX_TLS: 'tcp' }]);
  });
});

describe('a process that no mpirun started', () => {
  it('says that MPI is missing, and where its library cannot be loaded, which and where it is to be had', () => {
    expect(() => new Mpi({})).toThrow(
      /No mpirun started this process: neither OMPI_COMM_WORLD_RANK nor PMI_RANK is set/,
    );
    const addon = {
      openMpi: (library: string) => {
        throw new Error(`${library}: cannot open shared object file`);
      },
    } as unknown as ConstructorParameters<typeof Mpi>[1];
    expect(() => new Mpi({ PMI_RANK: '0' }, addon)).toThrow(
      /MPICH cannot be loaded \(Debian has it in libmpich12\): libmpi.so.12: cannot open.*libmpich.so.12/,
    );
  });
});
