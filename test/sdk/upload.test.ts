import { randomBytes } from 'node:crypto';
import { DatasetState, type ClientOptions, type UploadProgress } from '@relora/sdk';
import { Status, type CallContext } from 'nice-grpc';
import { expect, test } from 'vitest';
import { fewAtOnce } from '../../sdk/dist/fewAtOnce.js';
import { brokenServer, refusal, unavailable } from './brokenServer.js';

const chunkBytes = 256 << 10;
const content = randomBytes(20 * chunkBytes);

/** A server that stores what it receives; `fault` may throw at the beginning of a call and after each chunk. */
async function serve(
  fault: (call: number, chunks: number, context: CallContext) => void,
  ending = {},
  options: ClientOptions = {},
) {
  const received: Buffer[] = [];
  let calls = 0;
  const dataset = () => {
    const receivedBytes = received.reduce((sum, data) => sum + data.length, 0);
    const state = receivedBytes === content.length ? DatasetState.READY : DatasetState.UPLOADING;
    return {
      name: 'datasets/tales',
      state,
      files: [{ receivedBytes }],
      ...(state === DatasetState.READY ? ending : {}),
    };
  };
  const client = await brokenServer(
    {
      async getDataset(_, context) {
        if (calls === 0) throw refusal(context, Status.NOT_FOUND, 'DATASET_NOT_FOUND');
        return { dataset: dataset() };
      },
      async uploadDataset(messages, context) {
        const call = ++calls;
        let chunks = 0;
        fault(call, chunks, context);
        for await (const { chunk } of messages) {
          if (chunk === undefined) continue;
          expect(chunk.offsetBytes).toBe(dataset().files[0]!.receivedBytes);
          received.push(chunk.data as Buffer);
          fault(call, ++chunks, context);
        }
        return { dataset: dataset() };
      },
    },
    options,
  );
  const upload = (onProgress?: (progress: UploadProgress) => void) =>
    client.uploadDataset({ datasetId: 'tales', files: [{ content, fileName: 'tales.txt' }], onProgress });
  return { upload, received, calls: () => calls };
}

test('continues with what is missing, as long as there is progress', async () => {
  const { upload, received, calls } = await serve((_, chunks) => {
    if (chunks === 2) throw unavailable();
  });
  expect(await upload()).toMatchObject({ state: DatasetState.READY });
  expect(Buffer.concat(received).equals(content)).toBe(true);
  expect(calls()).toBeGreaterThan(5);
});

test('waits for the server to notice that the first connection broke', async () => {
  const { upload, received, calls } = await serve((call, chunks, context) => {
    if (call === 1 && chunks === 3) throw unavailable();
    if (call > 1 && call < 9) throw refusal(context, Status.ABORTED, 'UPLOAD_BUSY', 1);
  });
  expect(await upload()).toMatchObject({ state: DatasetState.READY });
  expect(Buffer.concat(received).equals(content)).toBe(true);
  expect(calls()).toBe(9);
});

test('continues behind what a server stored of an earlier try after it was looked at', async () => {
  const late = content.subarray(3 * chunkBytes, 4 * chunkBytes);
  const { upload, received, calls } = await serve((call, chunks, context) => {
    if (call === 1 && chunks === 3) throw unavailable();
    if (call !== 2 || chunks > 0) return;
    received.push(late);
    throw refusal(context, Status.OUT_OF_RANGE, 'UPLOAD_OFFSET_WRONG');
  });
  expect(await upload()).toMatchObject({ state: DatasetState.READY });
  expect(Buffer.concat(received).equals(content)).toBe(true);
  expect(calls()).toBe(3);
});

test('an offset that is refused although nothing came meanwhile is an error', async () => {
  const { upload, calls } = await serve((call, chunks, context) => {
    if (chunks === 3) throw refusal(context, Status.OUT_OF_RANGE, 'UPLOAD_OFFSET_WRONG');
    if (call === 2) throw refusal(context, Status.OUT_OF_RANGE, 'UPLOAD_OFFSET_WRONG');
  });
  await expect(upload()).rejects.toMatchObject({ reason: 'UPLOAD_OFFSET_WRONG' });
  expect(calls()).toBe(2);
});

test('gives up when nothing gets through', async () => {
  const fault = () => {
    throw unavailable();
  };
  const tries = { attemptsMax: 7, initialDelayMs: 1 };
  const { upload, calls } = await serve(fault, {}, { retries: tries });
  await expect(upload()).rejects.toMatchObject({ code: 'UNAVAILABLE' });
  expect(calls()).toBe(7);
  const hurried = await serve(fault, {}, { deadlineMs: 200 });
  await expect(hurried.upload()).rejects.toMatchObject({ code: 'UNAVAILABLE' });
});

test('files are measured a few at a time, in their order, and none after a failure', async () => {
  let [open, openMax] = [0, 0];
  const measure = async (item: number) => {
    openMax = Math.max(openMax, ++open);
    await new Promise(setImmediate);
    open--;
    return 10 * item;
  };
  const items = Array.from({ length: 30 }, (_, index) => index);
  expect(await fewAtOnce(items, measure)).toEqual(items.map((item) => 10 * item));
  expect(openMax).toBe(4);
  const begun: number[] = [];
  const failing = fewAtOnce(items, async (item) => {
    begun.push(item);
    throw new Error('on purpose');
  });
  await expect(failing).rejects.toThrow('on purpose');
  expect(begun).toEqual([0, 1, 2, 3]);
});

test('a data set that cannot be prepared is an error with the reason', async () => {
  const failure = { reason: 'TEXT_NOT_UTF8', message: 'byte 17' };
  const { upload } = await serve(() => {}, { state: DatasetState.FAILED, failure });
  await expect(upload()).rejects.toMatchObject({ name: 'DatasetFailedError', reason: 'TEXT_NOT_UTF8' });
});
