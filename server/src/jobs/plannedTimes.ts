import { readStoredRunSpec, Schedule, type RunSpec } from '@relora/engine/plan';
import type { Database } from '../store/database.js';
import type { JobProgress } from './job.js';
import type { DeviceDescription } from './jobDevices.js';

/** How long all steps of a job take on a device; null where nothing says. */
export type SecondsOf = (spec: RunSpec, device: DeviceDescription) => number | null;

/** Many times what a queue has. */
const keptMax = 20_000;
/** What jobs reach, and with it what others will take, changes slowly. */
const keptMs = 600_000;

interface Planned {
  stepCount: number;
  stepTokens: number;
  seconds: number | null;
  timeMs: number;
}

/** How long jobs of the queue will take: by the rate that they had, or as their steps were planned. */
export class PlannedTimes {
  /** Reading a specification takes far longer than all the rest. */
  private readonly kept = new Map<string, Planned>();

  constructor(
    private readonly db: Database,
    private readonly secondsOf: SecondsOf,
  ) {}

  /** What is left of a job that starts there now; null where nothing says. */
  async remaining(jobId: string, progress: JobProgress, device: DeviceDescription): Promise<number | null> {
    const planned = await this.planned(jobId, device);
    if (planned === undefined) return null;
    const { stepCount, checkpointStep, tokensPerSecond } = progress;
    const steps = Math.max(0, stepCount - (checkpointStep ?? 0));
    if (tokensPerSecond !== null) return (steps * planned.stepTokens) / tokensPerSecond;
    return planned.seconds === null ? null : (planned.seconds * steps) / planned.stepCount;
  }

  /** Undefined for a job that is gone. */
  private async planned(jobId: string, device: DeviceDescription): Promise<Planned | undefined> {
    const { backend, model, instructionSet, threadCount } = device;
    const key = [jobId, backend, model, instructionSet, threadCount].join(' ');
    const known = this.kept.get(key);
    if (known !== undefined && performance.now() - known.timeMs < keptMs) return known;
    const row = await this.db.selectFrom('jobs').select('spec').where('id', '=', jobId).executeTakeFirst();
    if (row === undefined) return undefined;
    const spec = readStoredRunSpec(row.spec);
    const { sequenceCount, sequenceLength } = spec.batch;
    const planned = {
      stepCount: new Schedule(spec).stepCount,
      stepTokens: sequenceCount * sequenceLength,
      seconds: this.secondsOf(spec, device),
      timeMs: performance.now(),
    };
    // What is not known yet may be soon.
    if (planned.seconds === null) return planned;
    if (this.kept.size >= keptMax) this.kept.delete(this.kept.keys().next().value!);
    this.kept.set(key, planned);
    return planned;
  }
}
