import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { Worker } from 'node:worker_threads';

/** How many bytes the file grows between two messages to the worker: a message costs as much as hashing some kilobytes. */
const stepBytes = 8 << 20;

/** Runs in a thread. It is a text because a module of its own would have to be found from two builds and in the output of any bundler. */
const program = `
const { parentPort, workerData } = require('node:worker_threads');
const { createHash } = require('node:crypto');
const { openSync, readSync } = require('node:fs');
const file = openSync(workerData, 'r');
const hash = createHash('sha256');
const piece = Buffer.allocUnsafe(1 << 20);
let done = 0;
parentPort.on('message', ({ size, isEnd }) => {
  while (done < size) {
    const length = readSync(file, piece, 0, Math.min(piece.length, size - done), done);
    if (length === 0) break; // shorter than it was: the hash will differ
    hash.update(piece.subarray(0, length));
    done += length;
  }
  if (isEnd) parentPort.postMessage(hash.digest('hex'));
});
`;

/**
 * SHA-256 of a growing file, computed from the file itself in parallel to the transfer: the receiving thread does not hash, and shortly
 * after the last byte is written, the hash is ready.
 */
export class FileDigest {
  private readonly worker: Worker;
  private readonly answer: Promise<string | undefined>;
  private said = 0;

  constructor(path: string) {
    this.worker = new Worker(program, { eval: true, workerData: path });
    this.worker.unref();
    this.answer = new Promise((resolve, reject) => {
      this.worker.once('message', resolve);
      this.worker.once('error', (error: NodeJS.ErrnoException) =>
        error.code === 'ENOENT' ? resolve(undefined) : reject(error),
      );
      this.worker.once('exit', () => reject(new Error('The thread that hashes has ended')));
    });
    // A failure before `finish` is thrown there; it is not unhandled.
    this.answer.catch(() => {});
  }

  /** The file has this many bytes now. */
  reached(size: number): void {
    if (size - this.said < stepBytes) return;
    this.said = size;
    this.worker.postMessage({ size, isEnd: false });
  }

  /** The hash of the first `size` bytes; undefined if the file was gone before it was opened. Rejects if it cannot be read. */
  async finish(size: number): Promise<string | undefined> {
    this.worker.ref();
    this.worker.postMessage({ size, isEnd: true });
    return await this.answer;
  }

  async close(): Promise<void> {
    await this.worker.terminate();
  }
}

/** SHA-256 of an existing file, hexadecimal. */
export async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  const file = await open(path);
  try {
    const block = Buffer.allocUnsafe(2 << 20);
    for (let position = 0; ;) {
      const { bytesRead } = await file.read(block, 0, block.length, position);
      if (bytesRead === 0) return hash.digest('hex');
      hash.update(block.subarray(0, bytesRead));
      position += bytesRead;
    }
  } finally {
    await file.close();
  }
}
