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
import { allocateWithHeadroom, reuse, streamedBytes } from '../../server/dist/headroom.js';

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

test.each(sizes)(
  'an answer with %d bytes that have room before them is written as the generated code writes it',
  (size) => {
    const data = allocateWithHeadroom(size);
    data.set(randomBytes(size));
    const answer = DownloadArtifactResponse.fromPartial({ offsetBytes: 2 ** 40, data });
    const wanted = Buffer.from(DownloadArtifactResponse.encode(answer).finish());
    const first = DownloadArtifactResponse.encode(answer, new LargeBytesWriter()).finish() as Buffer;
    expect(first.equals(wanted)).toBe(true);
    // From 16 KiB on the memory of the bytes is passed without copying, so only one answer can have it.
    expect(first.buffer === data.buffer).toBe(size >= 16 * 1024);
    const second = DownloadArtifactResponse.encode(answer, new LargeBytesWriter()).finish();
    expect(second.buffer === data.buffer).toBe(false);
    expect(Buffer.from(second).equals(wanted)).toBe(true);
    expect(first.equals(wanted)).toBe(true);
  },
);

test('memory of a piece that was sent is used again, but for another piece only once', () => {
  const piece = allocateWithHeadroom(streamedBytes);
  reuse(piece);
  reuse(piece);
  const [next, other] = [allocateWithHeadroom(streamedBytes), allocateWithHeadroom(streamedBytes)];
  expect(next.buffer === piece.buffer).toBe(true);
  expect(other.buffer === piece.buffer).toBe(false);
});

test('bytes of a message that was read stay in its memory', () => {
  const message = Buffer.from(
    DownloadArtifactResponse.encode(
      DownloadArtifactResponse.fromPartial({ data: randomBytes(100) }),
    ).finish(),
  );
  const { data } = DownloadArtifactResponse.decode(message);
  expect(data.buffer === message.buffer).toBe(true);
  expect(message.includes(data)).toBe(true);
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
