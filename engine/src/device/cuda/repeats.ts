import type { DeviceBuffer, RepeatKey, StepInputs } from '../device.js';
import { DeviceFault } from '../deviceFaults.js';
import type { CardMemory } from './cardMemory.js';
import { Feeds } from './feeds.js';
import type { Kernels } from './kernels.js';

/** Work that was queued under one key. */
interface Repeat {
  readonly key: RepeatKey;
  /** The inputs that the work was captured with: new ones are copied over them. */
  readonly inputs: StepInputs;
  readonly feeds: Feeds;
  /** The memory's mark when the work was last queued. */
  mark: string;
  graph: number | null;
  /** Calls of each kernel when the work is done once. */
  counts: ReadonlyMap<string, number>;
}

/** Most graphs, since each takes driver memory: further kinds of work are queued every time. */
const repeatsMax = 16;

/**
 * Runs repeated work as CUDA graphs. Work is queued directly twice; if nothing has changed since, the third time is captured as a graph,
 * which then runs instead: the same kernels with the same parameters and addresses, so the same bits. Inputs that change (ids and what is
 * derived from them, position for dropout) are uploaded before. The same calls get the same addresses as long as the same memory is
 * allocated. A mark detects differences: a checksum of the allocated pieces, and a count of changes that repeated calls would not make,
 * such as a packed base, a write outside of a step, or memory returned to the driver.
 */
export class Repeats {
  private readonly known: Repeat[] = [];
  /** The driver refused a graph: no further one is attempted. */
  private isRefused = false;

  constructor(
    private readonly memory: CardMemory,
    private readonly kernels: Kernels,
  ) {}

  run(key: RepeatKey, inputs: StepInputs, work: (inputs: StepInputs) => void): void {
    const mark = this.memory.mark();
    const found = this.isRefused ? undefined : this.known.find((other) => isSame(other.key, key));
    if (found?.mark !== mark) {
      if (found !== undefined) this.forget(found);
      this.measured(found ?? this.newRepeat(key, inputs), inputs, work);
      return;
    }
    found.inputs.inputs.set(inputs.inputs);
    found.inputs.targets.set(inputs.targets);
    if (inputs.documents !== null) found.inputs.documents!.set(inputs.documents);
    if (inputs.dropout !== null) Object.assign(found.inputs.dropout!, inputs.dropout);
    if (found.graph === null && !this.capture(found, work))
      return this.memory.feeding(null, () => work(inputs));
    found.feeds.fill();
    this.memory.card.runGraph(found.graph!);
    for (const [kernel, count] of found.counts) this.kernels.counted(kernel, count);
  }

  /** Makes the next run of all work be queued directly: for measurements. */
  forgetAll(): void {
    this.drop(this.known.splice(0));
  }

  /** Drops work whose key contains the buffer: it cannot come again. */
  forgetWith(buffer: DeviceBuffer | null): void {
    if (!this.known.some(({ key }) => key.includes(buffer))) return;
    this.drop(this.known.filter(({ key }) => key.includes(buffer)));
    this.known.splice(0, this.known.length, ...this.known.filter(({ key }) => !key.includes(buffer)));
  }

  private drop(repeats: readonly Repeat[]): void {
    for (const repeat of repeats) {
      this.forget(repeat);
      repeat.feeds.release();
    }
  }

  /** Queues the work directly, and measures the uploads that it needs. */
  private measured(repeat: Repeat | null, inputs: StepInputs, work: (inputs: StepInputs) => void): void {
    if (repeat === null) return this.memory.feeding(null, () => work(inputs));
    repeat.feeds.measure();
    this.memory.feeding(repeat.feeds, () => work(inputs));
    repeat.feeds.reserve();
    repeat.mark = this.memory.mark();
  }

  private newRepeat(key: RepeatKey, { inputs, targets, documents, dropout }: StepInputs): Repeat | null {
    if (this.isRefused || this.known.length === repeatsMax) return null;
    const own = {
      ...{ inputs: inputs.slice(), targets: targets.slice() },
      ...{ documents: documents && documents.slice(), dropout: dropout && { ...dropout } },
    };
    const repeat = {
      key,
      inputs: own,
      feeds: new Feeds(this.memory),
      mark: '',
      graph: null,
      counts: new Map(),
    };
    this.known.push(repeat);
    return repeat;
  }

  /** False if the driver cannot make a graph of it: then nothing was run. */
  private capture(repeat: Repeat, work: (inputs: StepInputs) => void): boolean {
    const { memory, kernels } = this;
    const before = new Map(kernels.counts);
    const { card } = memory;
    const taken = memory.snapshot();
    repeat.feeds.record();
    try {
      card.beginCapture();
      try {
        memory.feeding(repeat.feeds, () => work(repeat.inputs));
      } finally {
        repeat.graph = card.endCapture();
      }
    } catch (error) {
      if (!(error instanceof DeviceFault)) throw error;
      memory.giveAllBut(taken);
      this.isRefused = true;
      this.forgetAll();
      return false;
    } finally {
      const counts = [...kernels.counts].map(
        ([name, count]) => [name, count - (before.get(name) ?? 0)] as const,
      );
      repeat.counts = new Map(counts.filter(([, count]) => count > 0));
      for (const [name, count] of repeat.counts) kernels.counted(name, -count);
    }
    return true;
  }

  private forget(repeat: Repeat): void {
    if (repeat.graph !== null) this.memory.card.releaseGraph(repeat.graph);
    repeat.graph = null;
  }
}

const isSame = (one: RepeatKey, other: RepeatKey) =>
  one.length === other.length && one.every((part, i) => Object.is(part, other[i]));
