import { readStoredRunSpec, Schedule, type RunSpec } from '@relora/engine/plan';
import type { Database } from '../store/database.js';
import type { JobProgress } from './job.js';
import type { DeviceDescription } from './jobDevices.js';

/** How long all steps of a job take on a device; null if unknown. */
export type SecondsOf = (spec: RunSpec, device: DeviceDescription) => number | null;

/** Far more than a queue has. */
const keptMax = 20_000;
/** The speed of jobs, and with it the estimates for others, changes slowly. */
const keptMs = 600_000;

interface Planned {
  stepCount: number;
  stepTokens: number;
  seconds: number | null;
  timeMs: number;
}

/** How long queued jobs will take: from the speed that they had, else from the estimate for their steps. */
export class PlannedTimes {
  /** Cached because reading a specification takes far longer than everything else. */
  private readonly kept = new Map<string, Planned>();

  constructor(
    private readonly db: Database,
    private readonly secondsOf: SecondsOf,
  ) {}

  /** Seconds that a job still needs if it starts there now; null if unknown. */
  async remaining(jobId: string, progress: JobProgress, device: DeviceDescription): Promise<number | null> {
    const planned = await this.planned(jobId, device);
    if (planned === undefined) return null;
    const { stepCount, checkpointStep, tokensPerSecond } = progress;
    const steps = Math.max(0, stepCount - (checkpointStep ?? 0));
    if (tokensPerSecond !== null) return (steps * planned.stepTokens) / tokensPerSecond;
    return planned.seconds === null ? null : (planned.seconds * steps) / planned.stepCount;
  }

  /** Undefined for a job that no longer exists. */
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
    // An unknown duration is not kept: it may be known soon.
    if (planned.seconds === null) return planned;
    if (this.kept.size >= keptMax) this.kept.delete(this.kept.keys().next().value!);
    this.kept.set(key, planned);
    return planned;
  }
}
