import { JobSpec, JobState, ServerServiceDefinition, type JobEvent } from '@relora/sdk/contract';
import { createChannel, createClient } from 'nice-grpc';
import { expect, onTestFinished, test } from 'vitest';
import { isTensorflowSetUp } from '../../engine/dist/device/tfjs/tensorflow.js';
import { patienceMs } from '../patience.mjs';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder, tinySpec } from './tinyJob.js';
import { clientsOf, statesOf, uploadTinyText, watchUntil } from './watchedJob.js';

test.skipIf(!isTensorflowSetUp())(
  'a job on TensorFlow, which RELORA_DEVICE takes, has the losses of the definitions over two merges',
  async () => {
    const server = await startServerProcess(temporaryFolder(), { RELORA_DEVICE: 'tensorflow' });
    const clients = clientsOf(server.grpcAddress);
    const channel = createChannel(server.grpcAddress);
    onTestFinished(() => channel.close());
    const { devices } = await createClient(ServerServiceDefinition, channel).getServerInfo({});
    const [first] = devices;
    expect(first).toMatchObject({ backend: 'tensorflow', isDefault: true, instructionSet: '', uuid: '' });

    await uploadTinyText(clients);
    const lossesOn = async (device: string): Promise<number[]> => {
      const spec = JobSpec.fromJSON({
        ...{
          ...tinySpec(24),
          ...(device !== 'auto' && { device }),
          warm_start: { step_count: 2, warmup_step_count: 1 },
        },
        adapter: { rank: 4, cycle_step_count: 8, restart_warmup_step_count: 1 },
      });
      const { job } = await clients.training.createJob({ spec });
      const events: JobEvent[] = [];
      await watchUntil(clients, job!.name, events, () => false);
      expect(statesOf(events).at(-1)).toBe(JobState.SUCCEEDED);
      expect(events.filter(({ restart }) => restart !== undefined)).toHaveLength(2);
      const { execution } = (await clients.training.getJob({ name: job!.name })).job!;
      expect(execution!.backend).toBe(device === 'auto' ? 'tensorflow' : device);
      if (device === 'auto') expect(execution!.libraries.map(({ name }) => name)).toContain('tensorflow');
      return events.flatMap(({ step }) => step?.loss ?? []);
    };
    const [found, wanted] = [await lossesOn('auto'), await lossesOn('reference')];
    expect(found).toHaveLength(2 + 24);
    expect(Math.max(...found.map((loss, i) => Math.abs(loss - wanted[i]!)))).toBeLessThan(1e-4);

    const refused = JobSpec.fromJSON({ ...tinySpec(30), precision: 'PRECISION_BFLOAT16' });
    await expect(clients.training.createJob({ spec: refused })).rejects.toThrow(
      /AUTO or FLOAT32 on tensorflow, got BFLOAT16/,
    );
    const { estimate } = await clients.training.estimateJob({ spec: JobSpec.fromJSON(tinySpec(30)) });
    expect(estimate!.durationSeconds, 'not known').toBe(0);
  },
  patienceMs,
);
