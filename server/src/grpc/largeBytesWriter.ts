import { BinaryWriter } from '@bufbuild/protobuf/wire';

/** Below this, copying is sooner done than another part is kept. */
const largeBytes = 16 * 1024;

/** Encodes a message without copying its large bytes fields but once, into what is sent; the plain writer copies three times. */
export class LargeBytesWriter extends BinaryWriter {
  private readonly parts: Uint8Array[] = [];
  private depth = 0;

  /** What is in a message inside needs the length of all of it before. */
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
    return Buffer.concat([...this.parts.splice(0), super.finish()]);
  }
}
