import { BinaryWriter } from '@bufbuild/protobuf/wire';
import { crc32c } from '@node-rs/crc32';
import type { Point } from './points.js';

/**
 * Records of a TensorBoard event file: a length and the data, each with a masked CRC32C; the data is the message `tensorflow.Event`. They
 * depend only on the events, so that writing them again after a crash gives the same bytes.
 */
export function fileHeader(timeMs: number): Buffer {
  return record(event(timeMs, 0).uint32(tag(3, 2)).string('brain.Event:2').finish());
}

/** One record with the values of one event. */
export function pointsRecord(points: readonly Point[]): Buffer {
  const summary = new BinaryWriter();
  for (const { key, value } of points) {
    summary.uint32(tag(1, 2)).fork();
    summary.uint32(tag(1, 2)).string(key).uint32(tag(2, 5)).float(value);
    summary.join();
  }
  const { timeMs, step } = points[0]!;
  return record(event(timeMs, step).uint32(tag(5, 2)).bytes(summary.finish()).finish());
}

function event(timeMs: number, step: number): BinaryWriter {
  return new BinaryWriter()
    .uint32(tag(1, 1))
    .double(timeMs / 1000)
    .uint32(tag(2, 0))
    .int64(step);
}

function tag(field: number, wireType: number): number {
  return field * 8 + wireType;
}

function record(data: Uint8Array): Buffer {
  const bytes = Buffer.alloc(16 + data.length);
  bytes.writeBigUInt64LE(BigInt(data.length), 0);
  bytes.writeUInt32LE(masked(bytes.subarray(0, 8)), 8);
  bytes.set(data, 12);
  bytes.writeUInt32LE(masked(bytes.subarray(12, 12 + data.length)), 12 + data.length);
  return bytes;
}

/** Rotated and offset, as readers expect: a CRC over data that contains CRCs would be weak. */
function masked(bytes: Buffer): number {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}
