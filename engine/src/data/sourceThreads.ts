import { Worker } from 'node:worker_threads';
import type { ChatOptions } from './chatTemplate.js';
import type { DocumentOptions } from './documents.js';
import type { FilePart } from './filePart.js';
import type { RowCounts, SkipInvalid } from './invalidRows.js';
import type { FileDigest, OnDocument, PartFound, Source } from './readSource.js';
import type { SourceFile } from './regularFile.js';
import type { SourceFormat } from './sourceFormat.js';

/** Options with which a thread reads files. */
export interface SourceOrder {
  options: Omit<DocumentOptions, 'chat'>;
  /** Options of `options.chat`, which itself cannot be sent to a thread. */
  chatOptions: ChatOptions | null;
  skipInvalid: SkipInvalid | null;
  /** Whether digests of documents are needed. */
  comparesDocuments: boolean;
}

/** A unit of work of a thread: reads a file, or the rows of a part of it, or only computes its digest. */
export interface SourceTask {
  source: SourceFile;
  of: 'file' | 'digest' | { format: SourceFormat; part: FilePart };
  /** Its fraction of all work. */
  weight: number;
}

/** `taken`: number of document blocks of the task that were taken. */
export type SourceQuestion = ({ index: number } & Omit<SourceTask, 'weight'>) | { taken: number };

export type SourceResult =
  { source: Source; rows: RowCounts } | { part: PartFound; rows: RowCounts } | { digest: FileDigest };

export type SourceAnswer = { index: number } & (
  | { share: number }
  /** Where the rows of a part begin; sent before any of them */
  | { begin: number }
  | { digests: string[]; bytes: number[] }
  /** It failed, for whatever reason: the main thread repeats it to get the error. */
  | { failed: true }
  | SourceResult
);

/** Results of a thread that were not taken yet. */
interface Found {
  answers: SourceAnswer[];
  wake: () => void;
}

/** Reads files and parts of files in parallel, and returns their contents in order. */
export class SourceThreads {
  private readonly threads: Worker[] = [];
  private readonly found = new Map<number, Found>();
  private readonly shares: number[];
  private readonly owners = new Map<number, Worker>();
  private next = 0;

  constructor(
    order: SourceOrder,
    private readonly tasks: readonly SourceTask[],
    threads: number,
    private readonly progress: (share: number) => void,
  ) {
    this.shares = tasks.map(() => 0);
    for (let index = 0; index < Math.min(threads, tasks.length); index++) {
      const thread = new Worker(new URL('./sourceThread.js', import.meta.url), { workerData: order });
      thread.on('message', (answer: SourceAnswer) => this.hear(thread, answer));
      // The main thread repeats the work of a lost thread.
      const lost = () => this.lose(thread);
      thread.on('error', lost);
      thread.on('exit', lost);
      this.threads.push(thread);
      this.give(thread);
    }
  }

  /**
   * The result of a task, with its documents in order; undefined if the caller must do it itself, except for documents already delivered.
   * Nothing is delivered for a part that was not read from `begin` on.
   */
  async take(
    index: number,
    begin: number,
    onDocument: OnDocument,
    signal: AbortSignal,
  ): Promise<SourceResult | undefined> {
    if (!this.owners.has(index) && !this.found.has(index)) return undefined;
    const { answers } = this.of(index);
    let isOther = false;
    for (;;) {
      signal.throwIfAborted();
      const answer = answers.shift();
      if (answer === undefined) await this.changed(index, signal);
      else if ('begin' in answer) isOther = answer.begin !== begin;
      else if ('digests' in answer) {
        if (!isOther)
          for (const [place, digest] of answer.digests.entries()) onDocument(digest, answer.bytes[place]!);
        this.owners.get(index)?.postMessage({ taken: 1 } satisfies SourceQuestion);
      } else if ('failed' in answer) return undefined;
      else if (!('share' in answer)) return isOther ? undefined : answer;
    }
  }

  async close(): Promise<void> {
    await Promise.all(this.threads.splice(0).map((thread) => thread.terminate()));
  }

  private give(thread: Worker): void {
    const task = this.tasks[this.next];
    if (task === undefined) return;
    this.owners.set(this.next, thread);
    const { source, of } = task;
    thread.postMessage({ index: this.next++, source, of } satisfies SourceQuestion);
  }

  private hear(thread: Worker, answer: SourceAnswer): void {
    if ('share' in answer) {
      this.shares[answer.index] = answer.share;
      this.progress(this.shares.reduce((sum, share, index) => sum + share * this.tasks[index]!.weight, 0));
      return;
    }
    this.tell(answer);
    if (!('digests' in answer || 'begin' in answer)) {
      this.owners.delete(answer.index);
      this.give(thread);
    }
  }

  private lose(thread: Worker): void {
    for (const [index, owner] of this.owners) {
      if (owner !== thread) continue;
      this.owners.delete(index);
      this.tell({ index, failed: true });
    }
  }

  private tell(answer: SourceAnswer): void {
    const found = this.of(answer.index);
    found.answers.push(answer);
    found.wake();
  }

  private of(index: number): Found {
    const known = this.found.get(index) ?? { answers: [], wake: () => {} };
    this.found.set(index, known);
    return known;
  }

  private async changed(index: number, signal: AbortSignal): Promise<void> {
    const found = this.of(index);
    if (found.answers.length > 0) return;
    const woken = new AbortController();
    await new Promise<void>((resolve) => {
      found.wake = resolve;
      signal.addEventListener('abort', () => resolve(), { once: true, signal: woken.signal });
    });
    woken.abort();
    found.wake = () => {};
  }
}
