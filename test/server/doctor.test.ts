import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it, onTestFinished } from 'vitest';
import { cardCheckFindings } from '../../server/dist/doctor/cardCheck.js';
import type { Diagnosis } from '../../server/dist/doctor/doctor.js';
import { libraryFolder, modelSettings } from '../cuda/modelServer.js';
import { lockCard } from '../../server/dist/trainer/cardLock.js';
import { patienceMs } from '../patience.mjs';
import { startServerProcess } from '../e2e/serverProcess.js';
import { temporaryFolder } from './parts.js';

const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));

/** Both ports are free, unless a test says otherwise. */
const free = {
  RELORA_GRPC_ADDRESS: '127.0.0.1:0',
  RELORA_HTTP_ADDRESS: '127.0.0.1:0',
  RELORA_FREE_DISK_BYTES_MIN: '0',
};

async function doctor(settings: Record<string, string>, args = ['--json'], dataFolder = newFolder()) {
  const env = { PATH: process.env.PATH, RELORA_DATA_FOLDER: dataFolder, ...free, ...settings };
  return await new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
    execFile(process.execPath, [main, 'doctor', ...args], { env }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}

async function findings(settings: Record<string, string>, dataFolder?: string) {
  const { code, stdout } = await doctor(settings, ['--json'], dataFolder);
  const diagnosis = JSON.parse(stdout) as Diagnosis;
  expect(code).toBe(diagnosis.ok ? 0 : 1);
  return { ...diagnosis, of: (name: string) => diagnosis.findings.filter((found) => found.name === name) };
}

function newFolder(): string {
  const folder = temporaryFolder();
  chmodSync(folder, 0o700);
  return folder;
}

describe('relora-server doctor', () => {
  it('finds nothing wrong where nothing is, and says what there is', async () => {
    const { code, stdout } = await doctor({}, ['--check']);
    expect(code, stdout).toBe(0);
    for (const text of [
      /ok +processor .*threads/,
      /warning +check of a card +not run: there is no card that can be used/,
      /ok +memory/,
      /ok +disk/,
      /ok +clock/,
      /No fault was found/,
    ])
      expect(stdout).toMatch(text);
  });

  it('asks the server that holds the data folder', async () => {
    const folder = newFolder();
    await startServerProcess(folder);
    const { isRunning, of, ok } = await findings({}, folder);
    expect({ isRunning, ok }).toEqual({ isRunning: true, ok: true });
    expect(of('data folder')[0]!.message).toMatch(/held by the running server/);
    expect(of('gRPC port')).toEqual([]);
  });

  it('names a card with its memory and where its libraries come from', async () => {
    const folder = libraryFolder();
    const { of, ok } = await findings(modelSettings(folder));
    expect(ok).toBe(true);
    expect(of('card')[0]).toMatchObject({
      state: 'ok',
      message: expect.stringMatching(/Model of a card GPU-.*compute capability 9.0, 8.0 GiB/) as string,
    });
    expect(of('libraries')[0]!.message).toContain(join(folder, 'libnvrtc.so.13'));
    expect(of('libraries')[0]!.message).not.toContain('NCCL');
  });

  it(
    'tests a card if no server uses it, and says what is wrong',
    async () => {
      const card = { backend: 'cuda' as const, model: 'A card', uuid: `GPU-doctor-${process.pid}` };
      const check = async (sections: string) =>
        await cardCheckFindings([card], { cudaFolder: null }, ['--model', '--only', sections]);
      const name = 'check of a card';
      expect(await check('products')).toEqual([
        { name, state: 'ok', message: `A card ${card.uuid}: 7 ok`, cure: null },
      ]);
      const message = expect.stringMatching(
        /ended with code 1: Error: --only: expected some of kernels, conformance, [a-z, ]+, got nothing$/,
      ) as string;
      expect(await check('nothing')).toMatchObject([{ name, state: 'fault', message }]);
      process.env.CUDA_MODEL_LOSE_AFTER_LAUNCHES = '3';
      onTestFinished(() => void delete process.env.CUDA_MODEL_LOSE_AFTER_LAUNCHES);
      const lost = expect.stringMatching(
        / s FAULT memory: .*CUDA_ERROR_ECC_UNCORRECTABLE.*; 2 ok, 1 FAULT$/,
      ) as string;
      expect(await check('memory')).toMatchObject([{ name, state: 'fault', message: lost }]);
      const unlock = (await lockCard(card.uuid))!;
      onTestFinished(unlock);
      const used = expect.stringMatching(/^not run on A card GPU-doctor-\d+: a server uses it/) as string;
      expect(await check('products')).toMatchObject([{ name, state: 'warning', message: used }]);
    },
    patienceMs,
  );

  it('says how several cards exchange sums', async () => {
    const names = ['libcuda.so.1', 'libnvrtc.so.13'];
    for (const [folder, said] of [
      [libraryFolder(names), /through the memory of the machine, without NCCL$/],
      [libraryFolder([...names, 'libnccl.so.2']), /several cards exchange sums by NCCL 2\.27\.3$/],
    ] as const) {
      const several = { CUDA_MODEL_DEVICE_COUNT: '2', RELORA_NCCL: 'on' };
      const { of } = await findings({ ...modelSettings(folder), ...several });
      expect(of('libraries')[0]!.message).toMatch(said);
    }
  });

  it.each([
    [
      'a port that is taken',
      'gRPC port',
      /something else listens/,
      /RELORA_GRPC_ADDRESS/,
      async () => {
        const server = createServer().listen(0, '127.0.0.1');
        await new Promise((resolve) => server.once('listening', resolve));
        onTestFinished(() => void server.close());
        return { RELORA_GRPC_ADDRESS: `127.0.0.1:${(server.address() as { port: number }).port}` };
      },
    ],
    [
      'no card where one is forced',
      'card',
      /DEVICE_LIBRARY_MISSING/,
      /install the NVIDIA driver/,
      async () => ({ RELORA_DEVICE: 'cuda' }),
    ],
    [
      'a folder of libraries without a compiler',
      'libraries',
      /libcuda.so.1, searched only in RELORA_CUDA_FOLDER/,
      /libnvrtc/,
      async () => ({
        RELORA_CUDA_FOLDER: libraryFolder(['libcuda.so.1']),
      }),
    ],
    [
      'too little disk',
      'disk',
      /no job starts below/,
      /free some/,
      async () => ({ RELORA_FREE_DISK_BYTES_MIN: String(2 ** 50) }),
    ],
    [
      'more memory for a job than there is',
      'memory',
      /a job may have/,
      /RELORA_JOB_MEMORY_BYTES_MAX/,
      async () => ({
        RELORA_JOB_MEMORY_BYTES_MAX: String(2 ** 50),
      }),
    ],
    [
      'too few open files',
      'open files',
      /files may be open/,
      /ulimit -n/,
      async () => ({
        RELORA_DOWNLOADS_MAX: '10000',
        RELORA_UPLOADS_MAX: '10000',
        RELORA_HTTP_CONNECTIONS_MAX: '10000',
      }),
    ],
    [
      'a data folder that is a file',
      'data folder',
      /is no folder/,
      /RELORA_DATA_FOLDER/,
      async () => {
        const path = join(newFolder(), 'file');
        writeFileSync(path, '');
        return { RELORA_DATA_FOLDER: path };
      },
    ],
    [
      'the store of a newer version',
      'data folder',
      /schema 99/,
      /a newer one/,
      async () => {
        const folder = newFolder();
        const header = Buffer.alloc(100);
        header.writeUInt32BE(99, 60);
        header.writeUInt32BE(0x52654c6f, 68);
        writeFileSync(join(folder, 'store.db'), header);
        return { RELORA_DATA_FOLDER: folder };
      },
    ],
    [
      'instructions that the processor lacks',
      'devices',
      /RELORA_INSTRUCTION_SET/,
      /./,
      async () => ({ RELORA_INSTRUCTION_SET: 'amx' }),
    ],
  ])('%s is a fault with its cure', async (_, name, message, cure, settings) => {
    const { ok, of } = await findings(await settings());
    if (name === 'devices' && ok) return; // a processor that supports all of them
    expect(ok).toBe(false);
    expect(of(name)).toContainEqual({
      ...{ name, state: 'fault' },
      message: expect.stringMatching(message) as string,
      cure: expect.stringMatching(cure) as string,
    });
  });

  it('warns of a data folder that others can read', async () => {
    const folder = join(newFolder(), 'data');
    mkdirSync(folder);
    chmodSync(folder, 0o755);
    const { ok, of } = await findings({}, folder);
    expect(ok).toBe(true);
    expect(of('data folder')[0]).toMatchObject({
      state: 'warning',
      cure: expect.stringContaining('chmod 700') as string,
    });
  });

  it('refuses what it does not know, with exit code 2', async () => {
    const { code, stderr } = await doctor({}, ['--yaml']);
    expect({ code, stderr }).toEqual({
      code: 2,
      stderr: expect.stringContaining('doctor [--json]') as string,
    });
  });
});
