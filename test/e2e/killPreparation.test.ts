import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ReloraClient } from '@relora/sdk';
import { expect, onTestFinished, test } from 'vitest';
import { patienceMs } from '../patience.mjs';
import { startServerProcess } from './serverProcess.js';
import { temporaryFolder } from './tinyJob.js';

/** Some megabytes, so that the preparation takes longer than noticing its start. */
const text = (word: string) =>
  Array.from({ length: 120_000 }, (_, index) => `${word} ${index * 7919} over and under the stone.\n`).join(
    '',
  );
const tokenizer = { trainedBpe: { vocabularySize: 400 } };

test(
  'a data set whose server is killed while it is prepared is ready after the next start, with the same bytes',
  async () => {
    const folder = temporaryFolder();
    const settings = { RELORA_PREPARER_THREADS: '2' };
    let server = await startServerProcess(folder, settings);
    let client = new ReloraClient({ address: server.grpcAddress });
    onTestFinished(() => client.close());
    const whole = await client.uploadDataset({
      datasetId: 'whole',
      files: [{ content: text('alpha'), fileName: 'a.txt' }],
      spec: { tokenizer, heldOutShare: 0.1 },
    });
    const options = { files: [{ content: text('beta'), fileName: 'b.txt' }], base: whole.name };
    const appended = await client.uploadDataset({ ...options, datasetId: 'appended' });

    /** Uploads, kills the server at a given progress of the preparation, and returns the data set after the next start. */
    const killedAt = async (share: number, upload: Parameters<typeof client.uploadDataset>[0]) => {
      const name = `datasets/${upload.datasetId}`;
      const broken = client.uploadDataset(upload).catch(() => {});
      const shareOf = async () => {
        const { state, preparedRatio } = await client.getDataset(name).catch(() => whole);
        return state === 'DATASET_STATE_PREPARING' ? preparedRatio : 0;
      };
      await expect.poll(shareOf, { interval: 2, timeout: patienceMs }).toBeGreaterThan(share);
      server.process.kill('SIGKILL');
      await server.exited;
      client.close();
      await broken;
      expect(existsSync(join(folder, 'datasets', upload.datasetId!, '.progress', 'progress.json'))).toBe(
        true,
      );

      server = await startServerProcess(folder, settings);
      client = new ReloraClient({ address: server.grpcAddress });
      const stateOf = async () => (await client.getDataset(name)).state;
      await expect.poll(stateOf, { interval: 20, timeout: patienceMs }).not.toBe('DATASET_STATE_PREPARING');
      // It is removed once the data set is ready.
      const isLeft = () => existsSync(join(folder, 'datasets', upload.datasetId!, '.progress'));
      await expect.poll(isLeft, { timeout: patienceMs }).toBe(false);
      return await client.getDataset(name);
    };
    const again = await killedAt(0.3, {
      datasetId: 'again',
      files: [{ content: text('alpha'), fileName: 'a.txt' }],
      spec: { tokenizer, heldOutShare: 0.1 },
    });
    expect(again).toMatchObject({ state: 'DATASET_STATE_READY', manifestSha256: whole.manifestSha256 });
    const appendedAgain = await killedAt(0.1, { ...options, datasetId: 'appended-again' });
    expect(appendedAgain).toMatchObject({
      state: 'DATASET_STATE_READY',
      manifestSha256: appended.manifestSha256,
    });
  },
  patienceMs,
);
