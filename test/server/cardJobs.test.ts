import { HeadPrecision, Precision } from '@relora/sdk/contract';
import { describe, expect, it } from 'vitest';
import { readConfig } from '../../server/dist/config.js';
import { TaskRunner } from '../../server/dist/trainer/taskRunner.js';
import { libraryFolder, modelSettings } from '../cuda/modelServer.js';
import { patienceMs } from '../patience.mjs';
import { jobSpec, openApi, refusalOf } from './apiServer.js';
import { jobWhen, openParts, readyDataset, runSpec, statesOf, submit, temporaryFolder } from './parts.js';
import { runServer } from './runningServer.js';
import { startServerProcess } from '../e2e/serverProcess.js';

const card = {
  ...{ backend: 'cuda' as const, isDefault: true, model: 'A card', instructionSet: 'sm_90a', threadCount: 1 },
  ...{
    memoryBytes: 2 ** 33,
    float32Flops: 5e13,
    bfloat16Flops: 7e14,
    int8Flops: 0,
    memoryBytesPerSecond: 3e12,
  },
  ...{ autoPrecision: 'bfloat16' as const, uuid: 'GPU-1', computeCapability: '9.0' },
};
const config = { hiddenSize: 512, intermediateSize: 1376, numHiddenLayers: 8, numAttentionHeads: 8 };
const large = {
  model: { config: { ...config, maxPositionEmbeddings: 2048 } },
  dataset: 'datasets/text',
  stepCount: 20,
  adapter: { rank: 8, cycleStepCount: 10 },
  batch: { sequenceLength: 64, sequenceCount: 4 },
};

describe('a job for a card', () => {
  const open = async (more: Partial<typeof card> = {}, settings = {}) => {
    const api = await openApi(settings, { devices: [{ ...card, ...more }] });
    await readyDataset(api.parts);
    return api;
  };

  it('is estimated by the memory and the speed of the card, and takes a larger micro-batch', async () => {
    const { training } = await open();
    const batch = { sequenceLength: 64, sequenceCount: 256 };
    const { estimate, spec } = await training.estimateJob({ spec: { ...large, batch, device: 'cuda' } });
    expect(spec!.batch!.microBatchSequenceCount).toBe(256);
    expect(estimate!.cardMemoryBytes).toBeGreaterThan(1e8);
    expect(estimate!.cardMemoryLimitBytes).toBeLessThan(card.memoryBytes);
    expect(estimate!.durationSeconds).toBeGreaterThan(0);
    const asked = { ...batch, microBatchSequenceCount: 2 };
    const kept = await training.estimateJob({ spec: { ...large, batch: asked, device: 'cuda' } });
    expect(kept.spec!.batch!.microBatchSequenceCount).toBe(2);
  });

  it('is warned of where exports and texts of its model have no room on the processors, on which they run', async () => {
    const warningsWith = async (settings: object) => {
      const { training } = await open({}, settings);
      const { warnings } = await training.estimateJob({ spec: { ...large, device: 'cuda' } });
      return warnings.filter(({ reason }) => reason === 'TASKS_TOO_LARGE').map(({ message }) => message);
    };
    expect(await warningsWith({})).toEqual([]);
    expect(await warningsWith({ RELORA_JOB_MEMORY_BYTES_MAX: String(2 ** 26) })).toEqual([
      expect.stringMatching(
        /need 0\.\d+ GiB of memory; 0\.06 GiB are allowed here \(RELORA_JOB_MEMORY_BYTES_MAX\)$/,
      ),
    ]);
  });

  it('that was not measured has a time that is not known', async () => {
    const { training } = await open({ bfloat16Flops: 0, float32Flops: 0, memoryBytesPerSecond: 0 });
    const { estimate } = await training.estimateJob({ spec: { ...large, device: 'cuda' } });
    expect(estimate!.durationSeconds).toBe(0);
  });

  it('that needs more than the card has is refused with figures and with what would fit', async () => {
    const { training } = await open({ memoryBytes: 1.05 * 2 ** 30 });
    const batch = { sequenceLength: 64, sequenceCount: 256, microBatchSequenceCount: 256 };
    const spec = { ...large, batch, recomputation: 'RECOMPUTATION_NONE' as const, device: 'cuda' };
    const refusal = await refusalOf((options) => training.createJob({ spec }, options));
    expect(refusal.info.reason).toBe('JOB_TOO_LARGE');
    expect(refusal.message).toMatch(
      /GiB of the card's memory at its peak.* it would fit with batch\.micro_batch_sequence_count \d+/,
    );
    expect(refusal.message).not.toContain('INT8_BASE');
  });

  it.each([
    ['cuda', {}, Precision.INT8_BASE, /AUTO, FLOAT32, BFLOAT16 or FP8_BASE on cuda/],
    ['auto', { RELORA_DEVICE: 'cuda' }, Precision.NF4_BASE, /AUTO, FLOAT32, BFLOAT16 or FP8_BASE on cuda/],
  ])(
    'on %s is refused in a precision that the device lacks',
    async (device, settings, precision, message) => {
      const { training } = await open({}, settings);
      const refusal = await refusalOf((options) =>
        training.createJob({ spec: { ...large, device, precision } }, options),
      );
      expect(refusal).toMatchObject({ info: { reason: 'JOB_SPEC_INVALID' }, fields: ['spec.precision'] });
      expect(refusal.message).toMatch(message);
    },
  );

  const old = {
    ...card,
    model: 'An old card',
    instructionSet: 'sm_80',
    uuid: 'GPU-2',
    computeCapability: '8.0',
  };
  const inFp8 = { ...large, precision: Precision.FP8_BASE };

  it.each(['cuda', 'auto'])(
    'on %s in FP8 is refused if every card is too old, and says what would do',
    async (device) => {
      const { training } = await open(old);
      const call = { spec: { ...inFp8, device } };
      for (const refusal of [
        await refusalOf((options) => training.createJob(call, options)),
        await refusalOf((options) => training.estimateJob(call, options)),
      ]) {
        expect(refusal).toMatchObject({ info: { reason: 'JOB_SPEC_INVALID' }, fields: ['spec.precision'] });
        expect(refusal.message).toContain(
          'expected BFLOAT16, or a card of compute capability 8.9 or newer for FP8_BASE, got FP8_BASE with An old card (compute capability 8.0, sm_80)',
        );
      }
      const spec = { ...inFp8, device, precision: Precision.BFLOAT16 };
      expect((await training.estimateJob({ spec })).estimate!.cardMemoryBytes).toBeGreaterThan(0);
    },
  );

  it.each([
    ['of this server', [{ ...old, memoryBytes: 2 ** 34 }, card], []],
    ['of another server', [old], [card]],
  ])('in FP8 is estimated for a card that serves it, %s', async (_, devices, elsewhere) => {
    const api = await openApi({}, { devices, elsewhere });
    await readyDataset(api.parts);
    const { estimate } = await api.training.estimateJob({ spec: { ...inFp8, device: 'cuda' } });
    const limits = await open();
    const { estimate: alone } = await limits.training.estimateJob({ spec: { ...inFp8, device: 'cuda' } });
    expect(estimate!.cardMemoryLimitBytes).toBe(alone!.cardMemoryLimitBytes);
  });

  it('with a head in INT8 is refused where AUTO is a card', async () => {
    const { training } = await open({}, { RELORA_DEVICE: 'cuda' });
    const refusal = await refusalOf((options) =>
      training.createJob({ spec: { ...large, headPrecision: HeadPrecision.INT8 } }, options),
    );
    expect(refusal.fields).toEqual(['spec.head_precision']);
    expect(refusal.message).toContain('SAME on cuda, got INT8');
  });

  it('in BFLOAT16 is refused where AUTO is TensorFlow', async () => {
    const api = await openApi(
      { RELORA_DEVICE: 'tensorflow' },
      { devices: [{ ...card, backend: 'tensorflow' as never }] },
    );
    await readyDataset(api.parts);
    const refusal = await refusalOf((options) =>
      api.training.createJob({ spec: jobSpec('', { precision: Precision.BFLOAT16 }) }, options),
    );
    expect(refusal.message).toMatch(/AUTO or FLOAT32 on tensorflow, got BFLOAT16/);
  });
});

describe('a fault of a card', () => {
  it.each([
    ['DEVICE_NOT_FOUND', 'paused'],
    ['DEVICE_LIBRARY_MISSING', 'paused'],
    ['DEVICE_DRIVER_TOO_OLD', 'paused'],
    ['DEVICE_TOO_OLD', 'paused'],
    ['DEVICE_PRECISION_UNKNOWN', 'failed'],
    ['DEVICE_OUT_OF_MEMORY', 'failed'],
    ['DEVICE_LOST', 'failed'],
  ])('%s ends the attempt with its reason: the job is %s, at last', async (reason, state) => {
    const parts = await openParts();
    await readyDataset(parts);
    const job = await submit(parts, { spec: runSpec(`fail ${reason}`) });
    await parts.supervisor.start();
    const done = await jobWhen(parts, job.id, (found) => found.state === state);
    const isTried = reason === 'DEVICE_OUT_OF_MEMORY' || reason === 'DEVICE_LOST';
    expect((await statesOf(parts, job.id)).filter((name) => name === 'starting')).toHaveLength(
      isTried ? 3 : 1,
    );
    if (state === 'failed') expect(done.failure!.reason).toBe(reason);
    else expect(done.stateReason).toMatch(new RegExp(`${reason}.*resume the job`));
  });
});

describe('looking for cards', () => {
  const found = async (variables: Record<string, string>, folder = libraryFolder()) => {
    const before = { ...process.env };
    Object.assign(process.env, variables);
    try {
      const settings = {
        ...modelSettings(folder),
        RELORA_DATA_FOLDER: temporaryFolder(),
        RELORA_DEVICE: 'auto',
      };
      const runner = new TaskRunner(readConfig(settings), (await openParts()).log);
      return await runner.describeDevices();
    } finally {
      for (const name of Object.keys(variables)) delete process.env[name];
      Object.assign(process.env, before);
    }
  };

  it.each([
    ['DEVICE_TOO_OLD', { CUDA_MODEL_CAPABILITY: '75' }, /compute capability 7.5/],
    ['DEVICE_DRIVER_TOO_OLD', { CUDA_MODEL_DRIVER_VERSION: '11080' }, /install driver 525/],
    ['DEVICE_LIBRARY_MISSING', { CUDA_MODEL_DRIVER_VERSION: '12040' }, /newer than the driver/],
  ])(
    '%s is no device, and says why',
    async (reason, variables, message) => {
      const { devices, problems } = await found(variables);
      expect(devices.map(({ backend }) => backend)).not.toContain('cuda');
      const problem = problems.find(({ backend }) => backend === 'cuda');
      expect(problem).toMatchObject({ reason, message: expect.stringMatching(message) as string });
    },
    patienceMs,
  );

  it('a server does not start with a folder of libraries that has none, and says what is missing', async () => {
    const settings = { RELORA_CUDA_FOLDER: libraryFolder(['libcuda.so.1']) };
    await expect(startServerProcess(temporaryFolder(), settings)).rejects.toThrow(
      /code 2.*RELORA_CUDA_FOLDER is .*No compiler of kernels/,
    );
  });

  it('a server does not start with a card that is forced and not there', async () => {
    await expect(runServer({ RELORA_DEVICE: 'cuda' })).rejects.toThrow(
      /RELORA_DEVICE is cuda, but .*NVIDIA driver/s,
    );
  });
});
