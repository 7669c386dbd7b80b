import { parentPort, workerData } from 'node:worker_threads';
import { ChatTemplate } from './chatTemplate.js';
import type { DocumentOptions } from './documents.js';
import { InvalidRows } from './invalidRows.js';
import { beginOfPart, digestSource, readPart, readSource } from './readSource.js';
import type { SourceAnswer, SourceOrder, SourceQuestion, SourceResult, SourceTask } from './sourceThreads.js';

/** A thread of SourceThreads; does one task after another. */
const { options: given, chatOptions, skipInvalid, comparesDocuments } = workerData as SourceOrder;
const options: DocumentOptions = {
  ...given,
  chat: chatOptions === null ? null : new ChatTemplate(chatOptions),
};
const never = new AbortController().signal; // the thread is terminated instead

/** Documents per block, and most blocks not yet taken by the main thread: some megabytes of digests. */
const [blockDocuments, aheadMax] = [1 << 14, 64];
let ahead = 0;
let onTaken = () => {};

parentPort!.on('message', (question: SourceQuestion) => {
  if ('source' in question) void read(question.index, question);
  else {
    ahead -= question.taken;
    onTaken();
  }
});

async function read(index: number, { source, of }: Omit<SourceTask, 'weight'>): Promise<void> {
  const rows = new InvalidRows(skipInvalid);
  ahead = 0;
  let [digests, bytes]: [string[], number[]] = [[], []];
  let reported = 0;
  const flush = (): void => {
    if (digests.length === 0) return;
    tell({ index, digests, bytes });
    ahead++;
    [digests, bytes] = [[], []];
  };
  const onDocument = (digest: string, length: number): void => {
    digests.push(digest);
    bytes.push(length);
    if (digests.length === blockDocuments) flush();
  };
  const onShare = (share: number): void => {
    if (share - reported < 0.01 && share < 1) return;
    if (share > reported) tell({ index, share: (reported = share) });
  };
  const take = comparesDocuments ? onDocument : null;
  const result = async (): Promise<SourceResult> => {
    if (of === 'digest') return { digest: await digestSource(source, never) };
    if (of === 'file') {
      const found = await readSource(source, options, rows, take, onShare, never, room);
      return { source: found, rows: rows.counts };
    }
    const begin = await beginOfPart(source, of.format, of.part, options);
    tell({ index, begin });
    // The numbers of rows and lines before it are unknown here.
    const order = { ...of, place: { at: begin, rows: 0, lines: 0 } };
    const part = await readPart(source, order, options, rows, take, onShare, never, room);
    return { part, rows: rows.counts };
  };
  try {
    const found = await result();
    flush();
    tell({ index, ...found });
  } catch {
    flush();
    tell({ index, failed: true });
  }
}

/** Waits until the main thread has taken enough blocks. */
async function room(): Promise<void> {
  while (ahead >= aheadMax) await new Promise<void>((resolve) => (onTaken = resolve));
}

function tell(answer: SourceAnswer): void {
  parentPort!.postMessage(answer);
}
