import { BinaryWriter } from '@bufbuild/protobuf/wire';
import { takeHeadroom } from '../headroom.js';

/** Below this, copying is cheaper than another part. */
const largeBytes = 16 * 1024;

/**
 * Encodes a message and copies its large bytes fields only once, into the result; the plain writer copies them three times. If the message
 * ends with bytes that have headroom, they are not copied at all.
 */
export class LargeBytesWriter extends BinaryWriter {
  private readonly parts: Uint8Array[] = [];
  private depth = 0;

  /** The length of a nested message must be known before its content is written. */
  override fork(): this {
    this.depth++;
    return super.fork();
  }

  override join(): this {
    this.depth--;
    return super.join();
  }

  override raw(chunk: Uint8Array): this {
    if (this.depth > 0 || chunk.length < largeBytes) return super.raw(chunk);
    this.parts.push(super.finish(), chunk);
    return this;
  }

  override finish(): Buffer<ArrayBuffer> {
    const parts = [...this.parts.splice(0), super.finish()];
    const [head, large, tail] = parts;
    const inPlace = parts.length === 3 && tail!.length === 0 ? takeHeadroom(large!, head!.length) : undefined;
    if (inPlace === undefined) return Buffer.concat(parts);
    inPlace.set(head!);
    return inPlace;
  }
}
