import { randomBytes } from 'node:crypto';
import {
  DownloadArtifactResponse,
  ImportJobRequest,
  UploadDatasetRequest,
  UploadWeightsRequest,
} from '@relora/sdk/contract';
import { expect, test } from 'vitest';
import { copyingOnce } from '../../sdk/dist/chunkEncoding.js';
import { LargeBytesWriter } from '../../server/dist/grpc/largeBytesWriter.js';

const sizes = [0, 1, 127, 128, 16 * 1024 - 1, 16 * 1024, 256 * 1024];

test.each(sizes)('an answer with %d bytes is written as the generated code writes it', (size) => {
  const answer = DownloadArtifactResponse.fromPartial({
    offsetBytes: 2 ** 40,
    data: randomBytes(size),
    file: { fileName: 'model.safetensors', sizeBytes: 2 ** 41, sha256: 'ab'.repeat(32) },
  });
  const written = DownloadArtifactResponse.encode(answer, new LargeBytesWriter()).finish();
  expect(Buffer.from(written).equals(DownloadArtifactResponse.encode(answer).finish())).toBe(true);
});

test.each(sizes)('a chunk of %d bytes is written as the generated code writes it', (size) => {
  const chunk = { fileIndex: 3, offsetBytes: 2 ** 40, data: randomBytes(size) };
  const weights = UploadWeightsRequest.fromPartial({ chunk });
  const dataset = UploadDatasetRequest.fromPartial({ chunk });
  const once = [
    copyingOnce(UploadWeightsRequest).encode(weights).finish(),
    copyingOnce(ImportJobRequest).encode(ImportJobRequest.fromPartial({ chunk })).finish(),
    copyingOnce(UploadDatasetRequest).encode(dataset).finish(),
  ];
  for (const bytes of once) {
    const read = UploadDatasetRequest.decode(Buffer.from(bytes));
    expect(read).toEqual(UploadDatasetRequest.decode(UploadDatasetRequest.encode(dataset).finish()));
  }
  if (size > 0)
    expect(Buffer.from(once.at(-1)!).equals(UploadDatasetRequest.encode(dataset).finish())).toBe(true);
});

test('a header is written as the generated code writes it', () => {
  const header = UploadDatasetRequest.fromPartial({ header: { datasetId: 'tales' } });
  const written = copyingOnce(UploadDatasetRequest).encode(header).finish();
  expect(Buffer.from(written)).toEqual(Buffer.from(UploadDatasetRequest.encode(header).finish()));
});
