import { Worker } from 'node:worker_threads';
import { DataError, type DataErrorDetail, type DataErrorReason } from './dataErrors.js';
import type { BatchOptions, BatchSource, DocumentBatch, OmittedTokens } from './batches.js';
import type { ShardEntry } from './manifest.js';

/** What the thread needs from a data set. */
export interface FeedPart {
  folder: string;
  tokenBytes: number;
  train: readonly ShardEntry[];
  endOfTextId: number;
  weight: number;
  omitted?: OmittedTokens | undefined;
}

export interface FeedOrder {
  parts: readonly FeedPart[];
  options: BatchOptions;
  /** File that records which shards were verified; null: every shard is verified again. */
  checkedPath: string | null;
}

/** Request to the thread. */
export interface FeedRequest {
  id: number;
  firstSequence: number;
  count: number;
}

/** Its answer: a batch, or the reason why there is none. */
export type FeedAnswer = { id: number } & (
  | { batch: DocumentBatch }
  | { reason: DataErrorReason; detail: DataErrorDetail<DataErrorReason> }
  | { error: Error; ofSystem: Record<'code' | 'syscall' | 'path', unknown> }
);

interface Waiting {
  resolve(batch: DocumentBatch): void;
  reject(error: Error): void;
}

/**
 * Supplies a run with batches from a separate thread, which reads the next one while the present one is computed: a slow disk, or a part
 * larger than memory, costs the run nothing as long as a batch is read in the time of a step. The thread checks each file against its
 * SHA-256 before it first reads from it, once per job, and detects files that are changed later.
 */
export class BatchFeed implements BatchSource {
  private worker: Worker | undefined;
  private readonly waiting = new Map<number, Waiting>();
  private lastId = 0;
  private ahead: { firstSequence: number; count: number; batch: Promise<DocumentBatch> } | undefined;

  constructor(private readonly order: FeedOrder) {}

  async read(firstSequence: number, count: number): Promise<DocumentBatch> {
    const { ahead } = this;
    if (ahead?.firstSequence !== firstSequence || ahead.count !== count)
      return await this.ask(firstSequence, count);
    this.ahead = undefined;
    return await ahead.batch;
  }

  /** Starts reading the batch that will be requested next. */
  prepare(firstSequence: number, count: number): void {
    const batch = this.ask(firstSequence, count);
    batch.catch(() => {}); // the error reaches whoever takes the batch; possibly nobody does
    this.ahead = { firstSequence, count, batch };
  }

  close(): void {
    this.failAll(new Error('The run has ended'));
    void this.worker?.terminate();
    this.worker = undefined;
  }

  private async ask(firstSequence: number, count: number): Promise<DocumentBatch> {
    const worker = (this.worker ??= this.start());
    const id = ++this.lastId;
    return await new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      worker.ref(); // or a process that waits for nothing else would exit
      worker.postMessage({ id, firstSequence, count } satisfies FeedRequest);
    });
  }

  private start(): Worker {
    const worker = new Worker(new URL('./feedThread.js', import.meta.url), { workerData: this.order });
    worker.unref();
    worker.on('message', (answer: FeedAnswer) => this.take(answer));
    worker.on('error', (error: Error) => this.failAll(error));
    worker.on('exit', () => this.failAll(new Error('The thread that reads data has ended')));
    return worker;
  }

  private take(answer: FeedAnswer): void {
    const waiting = this.waiting.get(answer.id);
    this.waiting.delete(answer.id);
    if (this.waiting.size === 0) this.worker?.unref();
    if ('batch' in answer) waiting?.resolve(answer.batch);
    else if ('reason' in answer) waiting?.reject(new DataError(answer.reason, answer.detail));
    else waiting?.reject(Object.assign(answer.error, answer.ofSystem));
  }

  private failAll(error: Error): void {
    const all = [...this.waiting.values()];
    this.waiting.clear();
    for (const { reject } of all) reject(error);
  }
}
