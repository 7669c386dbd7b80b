/**
 * Buffers with free bytes in front of them. A message and a frame around an outgoing piece write their headers into these bytes, so the
 * piece is sent from the memory that it was read into, and that memory is reused afterwards. New memory for each piece would keep V8's
 * garbage collector busy for longer than sending the piece takes.
 */

/** Enough for the fields before the bytes in an answer, and for the frame header. */
const headroomBytes = 64;

/** Where the free bytes at the start of a buffer end. */
const freeUntil = new WeakMap<ArrayBufferLike, number>();

/** Size of the pieces of a streamed file, except for its last one. */
export const streamedBytes = 256 * 1024;

/** Memory of pieces of that size, ready to be reused. */
const spare: ArrayBufferLike[] = [];
const spareMax = 32;

/** A buffer in memory of its own, with free bytes in front of it. */
export function allocateWithHeadroom(bytes: number): Buffer {
  const used = bytes === streamedBytes ? spare.pop() : undefined;
  const memory = used ?? Buffer.allocUnsafeSlow(headroomBytes + bytes).buffer;
  freeUntil.set(memory, headroomBytes);
  return Buffer.from(memory, headroomBytes, bytes);
}

/**
 * Takes the free bytes in front of a piece. Only one caller can have them: the same memory is sent once.
 * @returns the piece with these bytes in front; undefined if there are too few
 */
export function takeHeadroom(piece: Uint8Array, bytes: number): Buffer<ArrayBuffer> | undefined {
  const start = piece.byteOffset - bytes;
  if (start < 0 || freeUntil.get(piece.buffer) !== piece.byteOffset) return undefined;
  freeUntil.set(piece.buffer, start);
  return Buffer.from(piece.buffer as ArrayBuffer, start, bytes + piece.length);
}

/** Gives back the memory of a piece that was sent. Nobody may read the piece afterwards. */
export function reuse({ buffer }: Uint8Array): void {
  const isStreamed = freeUntil.delete(buffer) && buffer.byteLength === headroomBytes + streamedBytes;
  if (isStreamed && spare.length < spareMax) spare.push(buffer);
}
