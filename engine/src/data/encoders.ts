import { Worker } from 'node:worker_threads';
import { DataError, type DataErrorDetail, type DataErrorReason } from './dataErrors.js';
import type { EndTokens } from '../plan/endTokens.js';
import { encodeBlock, type EncodedBlock, type TextBlock } from './encodeBlock.js';
import type { Tokenizer } from './tokenizer.js';

/** Input from which a thread creates its tokenizer, which was tested before. */
export interface EncoderOrder {
  json: string;
  kind: 'trainedBpe' | 'huggingFace';
  endTokens?: EndTokens;
}

/** Errors sent between threads keep only message and stack, so a DataError is sent as its constructor arguments. */
export type EncoderAnswer =
  | { block: EncodedBlock }
  | { error: Error }
  | { reason: DataErrorReason; detail: DataErrorDetail<DataErrorReason> };

/** Encodes blocks of text, several in parallel. */
export interface Encoders {
  /** Number of blocks to queue so that no thread is ever idle. */
  readonly ahead: number;
  encode(block: TextBlock): Promise<EncodedBlock>;
  close(): Promise<void>;
}

/** Encodes in the calling thread. */
export function ownEncoder(tokenizer: Tokenizer): Encoders {
  return {
    ahead: 0,
    encode: (block) => encodeBlock(tokenizer, block),
    close: () => Promise.resolve(),
  };
}

/** Memory in bytes: for reading, writing and digests; per thread; and per thread for each byte of tokenizer.json. */
const memory = { rest: 2 ** 30, thread: 384 * 2 ** 20, perJsonByte: 64 };

/** How many threads fit into a process with this much memory; at least one. */
export function encoderThreadsMax(
  tokenizer: { kind: string; tokenizerJson?: string },
  memoryBytesMax: number,
): number {
  const threadBytes = memory.thread + memory.perJsonByte * (tokenizer.tokenizerJson?.length ?? 0);
  return Math.max(1, Math.floor((memoryBytesMax - memory.rest) / threadBytes));
}

interface Waiting {
  block: TextBlock;
  resolve(block: EncodedBlock): void;
  reject(error: unknown): void;
}

/** Encodes in several threads, each with its own tokenizer. */
export class EncoderThreads implements Encoders {
  readonly ahead: number;
  private readonly threads: Worker[] = [];
  private readonly idle: Worker[] = [];
  private readonly waiting: Waiting[] = [];
  private readonly busy = new Map<Worker, Waiting>();
  private failure: Error | undefined;

  constructor(order: EncoderOrder, threadCount: number) {
    this.ahead = 2 * threadCount;
    for (let index = 0; index < threadCount; index++) {
      const thread = new Worker(new URL('./encoderThread.js', import.meta.url), { workerData: order });
      thread.on('message', (answer: EncoderAnswer) => this.hear(thread, answer));
      thread.on('error', (error) => this.fail(error));
      thread.on('exit', () => this.fail(new Error('A thread that encodes text ended')));
      this.threads.push(thread);
      this.idle.push(thread);
    }
  }

  async encode(block: TextBlock): Promise<EncodedBlock> {
    return await new Promise((resolve, reject) => {
      this.waiting.push({ block, resolve, reject });
      this.next();
    });
  }

  async close(): Promise<void> {
    this.failure ??= new Error('The threads that encode text were ended');
    await Promise.all(this.threads.map((thread) => thread.terminate()));
  }

  private next(): void {
    if (this.failure !== undefined) return this.fail(this.failure);
    while (this.idle.length > 0 && this.waiting.length > 0) {
      const [thread, waiting] = [this.idle.pop()!, this.waiting.shift()!];
      this.busy.set(thread, waiting);
      thread.postMessage(waiting.block);
    }
  }

  private hear(thread: Worker, answer: EncoderAnswer): void {
    const waiting = this.busy.get(thread);
    this.busy.delete(thread);
    this.idle.push(thread);
    if ('error' in answer) waiting?.reject(answer.error);
    else if ('reason' in answer) waiting?.reject(new DataError(answer.reason, answer.detail));
    else waiting?.resolve(answer.block);
    this.next();
  }

  private fail(error: Error): void {
    this.failure ??= error;
    for (const { reject } of [...this.busy.values(), ...this.waiting.splice(0)]) reject(this.failure);
    this.busy.clear();
  }
}
