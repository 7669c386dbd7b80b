/**
 * Buffers with free bytes before them. What wraps a piece on its way out, a message around it and a frame around that, writes itself into
 * them, and the piece is sent from the memory that it was read into, which is used again then: memory that is new for each piece makes V8
 * collect garbage all the time, which takes longer than to send the piece.
 */

/** Enough for what stands before the bytes in an answer, and for its frame. */
const headroomBytes = 64;

/** Where the free bytes of a buffer end. */
const freeUntil = new WeakMap<ArrayBufferLike, number>();

/** Pieces of files that are streamed have this size, but for the last of each. */
export const streamedBytes = 256 * 1024;

/** Memory for pieces of that size that may be used again. */
const spare: ArrayBufferLike[] = [];
const spareMax = 32;

/** A buffer of its own memory, of which the bytes before it are free. */
export function allocateWithHeadroom(bytes: number): Buffer {
  const used = bytes === streamedBytes ? spare.pop() : undefined;
  const memory = used ?? Buffer.allocUnsafeSlow(headroomBytes + bytes).buffer;
  freeUntil.set(memory, headroomBytes);
  return Buffer.from(memory, headroomBytes, bytes);
}

/**
 * Takes free bytes before a piece, which only one can have: the same memory is sent once.
 * @returns the piece with these bytes before it, undefined where there are not so many
 */
export function takeHeadroom(piece: Uint8Array, bytes: number): Buffer<ArrayBuffer> | undefined {
  const start = piece.byteOffset - bytes;
  if (start < 0 || freeUntil.get(piece.buffer) !== piece.byteOffset) return undefined;
  freeUntil.set(piece.buffer, start);
  return Buffer.from(piece.buffer as ArrayBuffer, start, bytes + piece.length);
}

/** Gives back the memory of a piece that was sent. Nobody may look at it afterwards. */
export function reuse({ buffer }: Uint8Array): void {
  const isStreamed = freeUntil.delete(buffer) && buffer.byteLength === headroomBytes + streamedBytes;
  if (isStreamed && spare.length < spareMax) spare.push(buffer);
}
