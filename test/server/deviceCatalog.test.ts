import { pino } from 'pino';
import { expect, it, vi } from 'vitest';
import { DeviceCatalog } from '../../server/dist/api/deviceCatalog.js';
import type { DeviceDescription } from '../../server/dist/trainer/messages.js';

/** A machine whose load and jobs the test decides, and whose measurements are numbered. */
function open() {
  const machine = { load: 0, training: false };
  let count = 0;
  const describeDevices = async () => [{ float32Flops: ++count } as DeviceDescription];
  const { signal } = new AbortController();
  const catalogue = new DeviceCatalog({ describeDevices }, pino({ level: 'silent' }), signal, {
    loadRatio: () => machine.load,
    isTraining: () => machine.training,
  });
  return { machine, catalogue, measured: async () => (await catalogue.list())[0]!.float32Flops };
}

it('measures again when the machine was busy at the start and is quiet now, and only then', async () => {
  vi.spyOn(performance, 'now').mockReturnValue(0);
  const { machine, catalogue, measured } = open();
  machine.load = 0.9;
  expect(await measured()).toBe(1);
  expect(catalogue.loadRatio).toBe(0.9);

  machine.load = 0;
  expect(await measured(), 'at once').toBe(1);
  vi.spyOn(performance, 'now').mockReturnValue(120_000);
  machine.training = true;
  expect(await measured(), 'while a job trains').toBe(1);
  machine.training = false;
  machine.load = 0.8;
  expect(await measured(), 'while it is as busy').toBe(1);
  machine.load = 0.1;
  expect(await Promise.all([measured(), measured()])).toEqual([2, 2]);
  expect(catalogue.loadRatio).toBe(0.1);

  vi.spyOn(performance, 'now').mockReturnValue(1e9);
  machine.load = 0;
  expect(await measured(), 'after a quiet measurement').toBe(2);
  vi.restoreAllMocks();
});
