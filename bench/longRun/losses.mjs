import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream, existsSync } from 'node:fs';
import { createInterface } from 'node:readline';

/** The loss of every step of a job as its watcher got it, kept in a file so that the watcher may be ended too. */
export class Losses {
  /** By step; where a crash repeated one, as it was taken last. */
  byStep = [];
  repeated = 0;
  /** Steps that were repeated with another loss. */
  differing = [];
  attempts = 0;
  /** Step events that came as one, so that losses are missing. */
  spans = 0;
  /** Steps of what was due by time. */
  duties = { evaluation: [], checkpoint: [], sample: [] };
  #sequence = 0;

  constructor(path) {
    this.path = path;
  }

  /** Until the job has ended. */
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

  /** Of all losses, as 64-bit numbers in the order of the steps. */
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
