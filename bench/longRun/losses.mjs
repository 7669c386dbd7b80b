import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream, existsSync } from 'node:fs';
import { createInterface } from 'node:readline';

/** The loss of every step of a job as its watcher received it, stored in a file so that the watcher can be interrupted too. */
export class Losses {
  /** By step; if a crash repeated a step, the last value. */
  byStep = [];
  repeated = 0;
  /** Steps that were repeated with a different loss. */
  differing = [];
  attempts = 0;
  /** Number of events that stand for several steps, so that losses are missing. */
  spans = 0;
  /** Steps at which duties by time were done. */
  duties = { evaluation: [], checkpoint: [], sample: [] };
  #sequence = 0;

  constructor(path) {
    this.path = path;
  }

  /** Watches until the job has ended. */
  async follow(client, job) {
    if (existsSync(this.path))
      for await (const line of createInterface({ input: createReadStream(this.path) }))
        this.#take(JSON.parse(line));
    const file = createWriteStream(this.path, { flags: 'a' });
    for await (const event of client.watch(job, { afterSequence: this.#sequence })) {
      const { kind, sequence, attempt } = event;
      const { step = 0, loss, span } = event[kind];
      const entry = { kind, sequence, attempt, step, loss, isSpan: span !== undefined };
      this.#take(entry);
      file.write(`${JSON.stringify(entry)}\n`);
    }
    await new Promise((resolve) => file.end(resolve));
  }

  /** Hash of all losses, as 64-bit numbers in the order of the steps. */
  sha256() {
    return createHash('sha256')
      .update(Buffer.from(Float64Array.from(this.byStep).buffer))
      .digest('hex');
  }

  #take({ kind, sequence, attempt, step, loss, isSpan }) {
    this.#sequence = sequence;
    this.attempts = Math.max(this.attempts, attempt);
    if (this.duties[kind] !== undefined) this.duties[kind].push(step);
    if (kind !== 'step') return;
    if (isSpan) this.spans++;
    if (this.byStep[step] !== undefined) {
      this.repeated++;
      if (this.byStep[step] !== loss) this.differing.push(step);
    }
    this.byStep[step] = loss;
  }
}
