import type { FileHandle } from 'node:fs/promises';

/** So much may wait for the disk before whoever brings more has to wait as well. */
const waitingBytesMax = 8 << 20;

/**
 * Writes what comes to a file, in order, without making the one who brings it wait for the disk: what came during a write goes into the next
 * one. The file never has a later byte without those before it, so whatever length it has after a crash can be continued from.
 */
export class PartWriter {
  private waiting: Uint8Array[] = [];
  private waitingBytes = 0;
  private writing: Promise<void> | undefined;
  private failure: { error: unknown } | undefined;

  /**
   * @param writtenBytes how many bytes the file has
   * @param onWritten called after each write with how many it has then
   */
  constructor(
    private readonly file: FileHandle,
    private writtenBytes: number,
    private readonly onWritten: (writtenBytes: number) => void,
  ) {}

  /** Takes the next bytes, which must not change afterwards. Throws what made an earlier write fail. */
  async add(data: Uint8Array): Promise<void> {
    this.throwFailure();
    this.waiting.push(data);
    this.waitingBytes += data.length;
    this.writing ??= this.write();
    if (this.waitingBytes > waitingBytesMax) await this.writing;
    this.throwFailure();
  }

  /** Until all of it is in the file. Throws what made a write fail. */
  async flush(): Promise<void> {
    await this.idle();
    this.throwFailure();
  }

  /** Until nothing is being written, whatever became of it: the file may be closed then. */
  async idle(): Promise<void> {
    await this.writing;
  }

  /** Never rejects: nobody may be waiting when a write fails. */
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

/** @returns where the file ends then */
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
