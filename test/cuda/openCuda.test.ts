import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { DeviceFault } from '../../engine/dist/device/deviceFaults.js';
import { findLibraries } from '../../engine/dist/device/cuda/libraries.js';
import { openCuda } from '../../engine/dist/device/cuda/openCuda.js';
import { model } from './modelCard.js';
import { modelOptions, modelPath } from './modelPaths.js';

const whole = { memoryBytes: 2 ** 33, driverVersion: 13000, capability: 90, deviceCount: 1 };
const folders: string[] = [];
const newFolder = () => {
  folders.push(mkdtempSync(join(tmpdir(), 'relora-cuda-')));
  return folders.at(-1)!;
};
afterEach(() => {
  model.setCard(whole);
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

const open = (more: object = {}) => openCuda({ ...modelOptions, precision: 'bfloat16', ...more });

describe('opening a card', () => {
  it('describes what decides the bits', () => {
    const device = open();
    expect(device.description).toMatchObject({
      ...{ name: 'cuda', model: 'Model of a card', instructionSet: 'sm_90a', precision: 'bfloat16' },
      libraries: {
        driver: '13.0',
        nvrtc: '13.0',
        multiprocessors: '4',
        kernels: expect.stringMatching(/^[0-9a-f]{16}$/),
      },
    });
    device.close();
  });

  it.each([
    ['no card', { deviceCount: 0 }, {}, 'DEVICE_NOT_FOUND', /nvidia-smi/],
    [
      'another card than there is',
      {},
      { ordinal: 1 },
      'DEVICE_NOT_FOUND',
      /shows 1 cards, so there is no card 1/,
    ],
    [
      'a driver that is too old',
      { driverVersion: 11080 },
      {},
      'DEVICE_DRIVER_TOO_OLD',
      /CUDA 11.8, 12.0 is needed: install driver 525/,
    ],
    [
      'a card that is too old',
      { capability: 75 },
      {},
      'DEVICE_TOO_OLD',
      /compute capability 7.5, 8 is needed/,
    ],
    [
      'a compiler newer than the driver',
      { driverVersion: 12040 },
      {},
      'DEVICE_LIBRARY_MISSING',
      /CUDA 13.0 is newer than the driver's 12.4/,
    ],
    [
      'no compiler',
      {},
      { libraries: { driver: modelPath, compilers: [], products: [], collectives: [] } },
      'DEVICE_LIBRARY_MISSING',
      /install nvidia-cuda-nvrtc .* No libnvrtc was found/,
    ],
    [
      'no driver',
      {},
      {
        libraries: {
          driver: 'libcuda-that-is-not-there.so.1',
          compilers: [modelPath],
          products: [],
          collectives: [],
        },
      },
      'DEVICE_LIBRARY_MISSING',
      /libcuda-that-is-not-there.so.1.*install the NVIDIA driver/,
    ],
  ])('%s is a fault with a reason and a cure', (_, card, options, reason, message) => {
    model.setCard(card);
    let fault: unknown;
    try {
      open(options).close();
    } catch (caught) {
      fault = caught;
    }
    expect(fault).toBeInstanceOf(DeviceFault);
    expect(fault).toMatchObject({ reason, message: expect.stringMatching(message) });
  });
});

describe('a card in use', () => {
  it('that has too little memory says how much there is, and works with that', async () => {
    // Without the product library's workspace.
    const device = open({ libraries: { ...modelOptions.libraries, products: [] } });
    model.setCard({ memoryBytes: 2 ** 20 });
    const kept = device.alloc(1000);
    device.release(device.alloc(100_000)); // kept for reuse, and freed when a larger request does not fit
    const large = device.alloc(200_000);
    expect(() => device.alloc(200_000)).toThrow(
      expect.objectContaining({
        reason: 'DEVICE_OUT_OF_MEMORY',
        message: expect.stringMatching(
          /no 800000 bytes in addition to the 804096 .* of 1048576 are free.*smaller micro-batches/,
        ),
      }),
    );
    device.zero(kept);
    expect((await device.download(kept))[999]).toBe(0);
    device.release(large);
    device.close();
  });

  it('that is lost fails every read with that reason, and can be opened again', async () => {
    const device = open();
    const [a, b] = [device.alloc(8), device.alloc(8)];
    [a, b].forEach((buffer) => device.upload(buffer, new Float32Array(8).fill(1)));
    model.setCard({ loseAfterLaunches: 1 });
    device.addInPlace(a, b);
    expect((await device.download(a))[0]).toBe(2);
    device.addInPlace(a, b);
    await expect(device.download(a)).rejects.toMatchObject({
      reason: 'DEVICE_LOST',
      message: expect.stringContaining('CUDA_ERROR_ECC_UNCORRECTABLE'),
    });
    device.close();
    const again = open();
    const buffer = again.alloc(8);
    again.zero(buffer);
    expect((await again.download(buffer))[0]).toBe(0);
    again.close();
  });

  it('reads what was there when the read was queued, though it is written before the read is done', async () => {
    const device = open();
    const buffer = device.alloc(4);
    device.upload(buffer, Float32Array.of(1, 2, 3, 4));
    const read = device.download(buffer);
    device.zero(buffer);
    expect(await read).toEqual(Float32Array.of(1, 2, 3, 4));
    device.close();
  });
});

describe('the speed of a card', () => {
  it('is measured, and leaves nothing behind', async () => {
    const device = open();
    const speed = await device.measure();
    expect(speed).toMatchObject({ instructionSet: 'sm_90a', autoPrecision: 'bfloat16' });
    for (const field of ['float32Flops', 'bfloat16Flops', 'memoryBytesPerSecond'] as const)
      expect(speed[field], field).toBeGreaterThan(1e5);
    expect(device.memory()).toEqual({ count: 0, bytes: 0 });
    device.close();
  });
});

describe('compiled kernels', () => {
  it('are kept by content, read by whoever may not write, and compiled again where a file is damaged', async () => {
    const folder = newFolder();
    const use = async (isWritable: boolean) => {
      const device = open({ cache: { folder, isWritable } });
      const buffer = device.alloc(8);
      device.zero(buffer);
      device.scaleInPlace(buffer, 2);
      await device.download(buffer);
      device.close();
    };
    await use(false);
    expect(readdirSync(folder)).toEqual([]);
    await use(true);
    const [file, ...others] = readdirSync(folder);
    expect(file).toMatch(/^elementwise\.[0-9a-f]{32}\.bin$/);
    expect(others).toEqual([]);
    await use(false);
    writeFileSync(join(folder, file!), 'cut off');
    await use(false);
    await use(true);
    expect(readdirSync(folder)).toEqual([file]);
  });
});

describe('the search for libraries', () => {
  it('takes the named folder alone, else LD_LIBRARY_PATH and packages of Python before the system', () => {
    const [named, path, environment] = [newFolder(), newFolder(), newFolder()];
    const site = join(environment, 'lib', 'python3.12', 'site-packages', 'nvidia', 'cu13', 'lib');
    const packaged = join(site, '..', '..', 'nccl', 'lib');
    for (const folder of [site, packaged]) mkdirSync(folder, { recursive: true });
    for (const file of [
      join(named, 'libnvrtc.so.12'),
      join(path, 'libnvrtc.so.12'),
      join(site, 'libnvrtc.so.13'),
      join(packaged, 'libnccl.so.2'),
    ])
      writeFileSync(file, '');
    expect(findLibraries({ folder: named }).compilers).toEqual([join(named, 'libnvrtc.so.12')]);
    expect(findLibraries({ folder: newFolder() })).toMatchObject({ compilers: [], collectives: [] });
    const { compilers, driver, collectives } = findLibraries({
      folder: null,
      environment: { LD_LIBRARY_PATH: `${path}:`, VIRTUAL_ENV: environment },
    });
    expect(driver).toBe('libcuda.so.1');
    expect(collectives.slice(-2)).toEqual([join(packaged, 'libnccl.so.2'), 'libnccl.so.2']);
    expect(compilers[0]).toBe(join(path, 'libnvrtc.so.12'));
    expect(compilers.slice(-3)).toEqual([join(site, 'libnvrtc.so.13'), 'libnvrtc.so.13', 'libnvrtc.so.12']);
  });
});
