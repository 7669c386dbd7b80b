import type { Config } from '../config.js';
import type { Job, JobEvent } from '../jobs/job.js';
import { JournalFollower, type FollowerParts, type Taken } from '../jobs/journalFollower.js';
import type { Metrics } from '../metrics/metrics.js';
import { Mlflow, type MlflowOptions } from './mlflow.js';
import { TensorBoard } from './tensorBoard.js';
import type { Tracker } from './tracker.js';

export interface TrackerParts extends FollowerParts {
  config: Pick<Config, 'tensorBoardFolder' | 'mlflowUrl' | 'mlflowExperiment' | 'mlflowTokenFile'>;
  metrics: Metrics;
  specOf: MlflowOptions['specOf'];
}

/** Many small changes become one call. */
const pauseMs = 1000;

/** Feeds the trackers in the settings from the journals of all jobs, each on the one server that has its lease. */
export class Trackers {
  private readonly followers: JournalFollower[] = [];
  private readonly stopping = new AbortController();

  constructor(private readonly parts: TrackerParts) {}

  async start(): Promise<void> {
    const { config, log, specOf, readers } = this.parts;
    const trackers: Tracker[] = [];
    if (config.tensorBoardFolder !== null) trackers.push(new TensorBoard(config.tensorBoardFolder, log));
    if (config.mlflowUrl !== null)
      trackers.push(
        new Mlflow({
          url: config.mlflowUrl,
          experiment: config.mlflowExperiment,
          tokenFile: config.mlflowTokenFile,
          specOf,
          log,
        }),
      );
    for (const tracker of trackers) {
      // From the start, so that the curves of unfinished jobs are complete.
      await readers.register(tracker.name, { tenant: null, fromStart: true });
      const follower = new JournalFollower(this.parts, {
        id: tracker.name,
        tenant: null,
        withSteps: true,
        pauseMs,
        take: async (job, events, state) => await this.take(tracker, job, events, state),
      });
      follower.start();
      this.followers.push(follower);
    }
  }

  async stop(): Promise<void> {
    this.stopping.abort();
    await Promise.all(this.followers.map(async (follower) => await follower.stop()));
  }

  private async take(tracker: Tracker, job: Job, events: readonly JobEvent[], state: string): Promise<Taken> {
    const { metrics } = this.parts;
    const { name } = tracker;
    if (!isTracked(job, name)) return 'nothing';
    try {
      const next = await tracker.write(job, events, state, this.stopping.signal);
      metrics.trackerWrites.inc({ tracker: name });
      return { state: next };
    } catch (error) {
      if (!this.stopping.signal.aborted) metrics.trackerFailures.inc({ tracker: name });
      throw error;
    }
  }
}

/** The label `trackers` of a job names the trackers that show it, or `none`; without it, all of them do. */
function isTracked({ labels }: Job, name: Tracker['name']): boolean {
  const chosen = Object.hasOwn(labels, 'trackers') ? labels.trackers! : name;
  return chosen.split(',').includes(name);
}
