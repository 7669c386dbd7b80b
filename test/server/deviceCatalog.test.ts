import { defaultRunSpec } from '@relora/engine/plan';
import { pino } from 'pino';
import { expect, it, vi } from 'vitest';
import { DeviceCatalog } from '../../server/dist/api/deviceCatalog.js';
import type { Job, JobEvent } from '../../server/dist/jobs/job.js';
import type { ReachedRow } from '../../server/dist/api/reachedSpeed.js';
import type { DeviceDescription } from '../../server/dist/jobs/jobDevices.js';

const described: DeviceDescription = {
  backend: 'native',
  isDefault: true,
  model: 'a processor',
  instructionSet: 'avx2',
  threadCount: 2,
  memoryBytes: 1e9,
  float32Flops: 1e10,
  bfloat16Flops: 0,
  int8Flops: 0,
  memoryBytesPerSecond: 1e10,
  autoPrecision: 'float32',
  ...{ uuid: '', computeCapability: '' },
};

/** A machine whose load and jobs the test sets, and whose measurements are numbered. */
function open(rows = new Map<string, ReachedRow>()) {
  const machine = { load: 0, trainings: { running: 0, begun: 0 } };
  let count = 0;
  const store = {
    read: async () => [...rows.values()],
    write: async (row: ReachedRow) => void rows.set(row.device, structuredClone(row)),
  };
  const describeDevices = async () => ({
    devices: [{ ...described, float32Flops: ++count * 1e10 }],
    native: '',
    problems: [],
    libraries: [],
    nccl: null,
  });
  const compileKernels = async () => null;
  const { signal } = new AbortController();
  const catalog = new DeviceCatalog(
    { describeDevices, compileKernels },
    pino({ level: 'silent' }),
    signal,
    {
      loadRatio: () => machine.load,
      trainings: () => machine.trainings,
    },
    store,
  );
  return { machine, catalog, rows, measured: async () => (await catalog.list())[0]!.float32Flops };
}

it('measures again when the machine was busy at the start and is quiet now, and only then', async () => {
  vi.spyOn(performance, 'now').mockReturnValue(0);
  const { machine, catalog, measured } = open();
  machine.load = 0.9;
  expect(await measured()).toBe(1e10);
  expect(catalog.loadRatio).toBe(0.9);

  machine.load = 0;
  expect(await measured(), 'at once').toBe(1e10);
  vi.spyOn(performance, 'now').mockReturnValue(120_000);
  machine.trainings.running = 1;
  expect(await measured(), 'while a job trains').toBe(1e10);
  machine.trainings.running = 0;
  machine.load = 0.8;
  expect(await measured(), 'while it is as busy').toBe(1e10);
  machine.load = 0.1;
  expect(await Promise.all([measured(), measured()])).toEqual([2e10, 2e10]);
  expect(catalog.loadRatio).toBe(0.1);

  vi.spyOn(performance, 'now').mockReturnValue(1e9);
  machine.load = 0;
  expect(await measured(), 'after a quiet measurement').toBe(2e10);
  vi.restoreAllMocks();
});

/** Step events as in a job's journal. */
const stepsOf = (count: number, seconds: number) =>
  Array.from({ length: count }, () => ({
    body: { kind: 'step', step: 1, phase: 'adapter', omitted: false, stepSeconds: seconds },
  })) as unknown as JobEvent[];
const jobNamed = (id: string) =>
  ({ id, spec: defaultRunSpec(), execution: { backend: 'native' } }) as unknown as Job;

it('learns from steps that had the machine to themselves, and knows it after a restart', async () => {
  const { machine, catalog, rows } = open();
  const [device] = await catalog.list();
  machine.trainings = { running: 1, begun: 1 };
  catalog.note(jobNamed('a'), []); // it is running
  catalog.note(jobNamed('a'), stepsOf(20, 1));
  const alone = catalog.reachedOn(device!)!;
  expect(alone.ratio).toBeGreaterThan(0);

  // At the same time as another job, from that job's start to the first event after its end, even if both are between two events.
  machine.trainings = { running: 2, begun: 2 };
  catalog.note(jobNamed('a'), stepsOf(50, 9));
  catalog.note(jobNamed('b'), stepsOf(50, 9));
  machine.trainings = { running: 1, begun: 2 };
  catalog.note(jobNamed('a'), stepsOf(50, 9));
  machine.trainings = { running: 1, begun: 3 };
  catalog.note(jobNamed('a'), stepsOf(50, 9));
  expect(catalog.reachedOn(device!)).toEqual(alone);
  catalog.note(jobNamed('a'), stepsOf(1, 9));
  expect(catalog.reachedOn(device!)!.highRatio).toBe(alone.ratio);
  expect(rows.values().next().value!.ratios, 'a write each ten seconds').toHaveLength(20);
  await catalog.save({ isLast: true });

  const next = open(rows);
  next.machine.load = 0.9; // the new measurement is bad, but is not used
  await next.catalog.restore();
  const [again] = await next.catalog.list();
  expect(next.catalog.reachedOn(again!)).toEqual(catalog.reachedOn(device!));
  expect(next.catalog.reachedOn({ ...again!, threadCount: 64 }), 'another machine').toBeUndefined();
});
