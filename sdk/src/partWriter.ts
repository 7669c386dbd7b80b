import type { FileHandle } from 'node:fs/promises';

/** Bytes that may wait for the disk before `add` has to wait, too. */
const waitingBytesMax = 8 << 20;

/**
 * Writes data to a file, in order, without making the caller wait for the disk: data that arrives during a write goes into the next one.
 * The file never has a later byte without all bytes before it, so after a crash it can be continued at its length.
 */
export class PartWriter {
  private waiting: Uint8Array[] = [];
  private waitingBytes = 0;
  private writing: Promise<void> | undefined;
  private failure: { error: unknown } | undefined;

  /**
   * @param writtenBytes how many bytes the file already has
   * @param onWritten called after each write with the number of bytes in the file
   */
  constructor(
    private readonly file: FileHandle,
    private writtenBytes: number,
    private readonly onWritten: (writtenBytes: number) => void,
  ) {}

  /** Takes the next bytes, which must not change afterwards. Throws the error of an earlier write. */
  async add(data: Uint8Array): Promise<void> {
    this.throwFailure();
    this.waiting.push(data);
    this.waitingBytes += data.length;
    this.writing ??= this.write();
    if (this.waitingBytes > waitingBytesMax) await this.writing;
    this.throwFailure();
  }

  /** Resolves when everything is in the file. Throws the error of a failed write. */
  async flush(): Promise<void> {
    await this.idle();
    this.throwFailure();
  }

  /** Resolves when no write is in progress, whether or not it succeeded: the file may then be closed. */
  async idle(): Promise<void> {
    await this.writing;
  }

  /** Never rejects: perhaps nobody waits when a write fails. */
  private async write(): Promise<void> {
    try {
      while (this.waiting.length > 0) {
        const pieces = this.waiting.splice(0);
        this.waitingBytes = 0;
        this.writtenBytes = await writeAll(this.file, pieces, this.writtenBytes);
        this.onWritten(this.writtenBytes);
      }
    } catch (error) {
      this.failure = { error };
    } finally {
      this.writing = undefined;
    }
  }

  private throwFailure(): void {
    if (this.failure !== undefined) throw this.failure.error;
  }
}

/** @returns where the file ends afterwards */
async function writeAll(file: FileHandle, pieces: Uint8Array[], start: number): Promise<number> {
  let position = start;
  while (pieces.length > 0) {
    let { bytesWritten } = await file.writev(pieces, position);
    position += bytesWritten;
    while (pieces.length > 0 && bytesWritten >= pieces[0]!.length) bytesWritten -= pieces.shift()!.length;
    if (pieces.length > 0) pieces[0] = pieces[0]!.subarray(bytesWritten);
  }
  return position;
}
