import { credentials, loadPackageDefinition, type Client } from '@grpc/grpc-js';
import { loadFileDescriptorSetFromBuffer } from '@grpc/proto-loader';
import { readFileSync } from 'node:fs';
import { DatasetFile, UploadDatasetHeader, UploadDatasetRequest } from '@relora/sdk/contract';
import { ReloraClient, ReloraError } from '@relora/sdk';
import { describe, expect, it, onTestFinished } from 'vitest';
import { parseDatasetHeader } from '../../server/dist/api/datasetHeader.js';
import { AllowedFolders } from '../../server/dist/datasets/allowedFolders.js';
import type { ServiceError } from '../../server/dist/errors.js';
import { openApi, readRefusal } from './apiServer.js';
import { beginCall, framed, rawSession } from './rawCalls.js';

/** Limit on trailers for clients on gRPC's C core: names, values and 32 bytes per entry. */
const trailerBytesMax = 8192;

/** How a call ends, and the size of its trailers by HTTP/2's definition. */
async function trailersOf(address: string, path: string, request: Uint8Array) {
  const stream = beginCall(await rawSession(address), path);
  stream.end(framed(request));
  const headers = await new Promise<Record<string, unknown>>((resolve) => {
    stream.once('response', (received) => received['grpc-status'] !== undefined && resolve(received));
    stream.once('trailers', resolve);
    stream.resume();
  });
  const byteCount = Object.entries(headers).reduce(
    (sum, [name, value]) => sum + name.length + String(value).length + 32,
    0,
  );
  const details = Buffer.from(String(headers['grpc-status-details-bin']), 'base64');
  const message = decodeURI(String(headers['grpc-message']));
  return { byteCount, ...readRefusal(Number(headers['grpc-status']), message, details) };
}

const unset = (count: number) => Array.from({ length: count }, () => 'JOB_STATE_UNSPECIFIED' as never);

describe('what is wrong with a request fits into the trailers of every client', () => {
  for (const count of [1, 50, 1000]) {
    it(`${count} wrong files`, async () => {
      const { address } = await openApi();
      const files = Array.from({ length: count }, () => ({ fileName: 'a b/c', sizeBytes: 1, sha256: 'no' }));
      const request = UploadDatasetRequest.encode(
        UploadDatasetRequest.fromPartial({ header: { files } }),
      ).finish();
      const refusal = await trailersOf(address, '/relora.v1.DatasetService/UploadDataset', request);
      expect(refusal.byteCount).toBeLessThan(trailerBytesMax);
      expect(refusal.info.reason).toBe('REQUEST_INVALID');
      const both = ['header.files[0].file_name', 'header.files[0].sha256'];
      expect(refusal.fields.slice(0, 2)).toEqual(both);
      if (count === 1) expect(refusal.fields).toEqual(both);
      else expect(refusal.fields.length).toBeGreaterThan(15);
      if (count > 1) expect(refusal.message).toMatch(/; and at least \d+ more$/);
    });
  }

  it('of which the first hundred end the work on it', async () => {
    let lookedAt = 0;
    const files = Array.from({ length: 1000 }, () =>
      Object.defineProperty(DatasetFile.fromPartial({ fileName: 'a/b' }), 'sha256', {
        get: () => (lookedAt++, 'no'),
      }),
    );
    const { parts } = await openApi();
    const header = UploadDatasetHeader.fromPartial({});
    header.files = files;
    const { reason, detail } = (await parseDatasetHeader(
      { ...parts, allowedFolders: new AllowedFolders([]) },
      { tenant: 'default', name: 'anyone' },
      header,
    ).catch((error: unknown) => error)) as ServiceError<'REQUEST_INVALID'>;
    expect([reason, detail.problems.length]).toEqual(['REQUEST_INVALID', 100]);
    expect(lookedAt).toBeLessThan(300);
  });

  it('names and paths of any length, in any script', async () => {
    const { address } = await openApi();
    for (const name of ['x'.repeat(60_000), '長'.repeat(20_000), '\u{1f600}'.repeat(15_000)]) {
      const header = { files: [{ fileName: `../${name}`, serverPath: `/${name}` }], datasetId: name };
      const request = UploadDatasetRequest.encode(UploadDatasetRequest.fromPartial({ header })).finish();
      const refusal = await trailersOf(address, '/relora.v1.DatasetService/UploadDataset', request);
      expect(refusal.byteCount).toBeLessThan(trailerBytesMax);
      expect(refusal.info.reason).toBe('REQUEST_INVALID');
      expect(refusal.fields).toContain('header.dataset_id');
    }
  });

  it('reaches a client of grpc-js with its defaults, and ours', async () => {
    const { address } = await openApi();
    const set = readFileSync(new URL('../../server/src/generated/relora.binpb', import.meta.url));
    const { relora } = loadPackageDefinition(loadFileDescriptorSetFromBuffer(set)) as never as {
      relora: { v1: { TrainingService: new (address: string, creds: unknown) => Client } };
    };
    const client = new relora.v1.TrainingService(address, credentials.createInsecure());
    onTestFinished(() => client.close());
    const error = await new Promise<{ details: string; metadata: { get(key: string): unknown[] } }>(
      (resolve) => {
        (client as never as Record<string, (request: object, done: (error: never) => void) => void>)
          .ListJobs!({ states: Array(1000).fill(0) }, resolve);
      },
    );
    expect(error.details).toMatch(/^states: expected at most 20 entries, got 1000; .*; and \d+ more$/);
    expect(error.metadata.get('grpc-status-details-bin')).toHaveLength(1);

    const sdk = new ReloraClient({ address });
    onTestFinished(() => sdk.close());
    const refused = await sdk
      .listJobs({ states: unset(1000) })
      .next()
      .catch((thrown: unknown) => thrown);
    expect(refused).toBeInstanceOf(ReloraError);
    expect(refused).toMatchObject({ reason: 'REQUEST_INVALID', code: 'INVALID_ARGUMENT' });
    expect((refused as ReloraError).fields[0]).toEqual({
      field: 'states',
      description: 'expected at most 20 entries, got 1000',
    });
  });
});
