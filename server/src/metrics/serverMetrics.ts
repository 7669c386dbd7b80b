import { monitorEventLoopDelay, type IntervalHistogram } from 'node:perf_hooks';
import { statfs } from 'node:fs/promises';
import type { Config } from '../config.js';
import type { JobStore } from '../jobs/jobStore.js';
import type { Supervisor } from '../trainer/supervisor.js';
import type { JobMetrics } from './jobMetrics.js';
import type { Metrics } from './metrics.js';

export interface ScrapeParts {
  metrics: Metrics;
  jobMetrics: JobMetrics;
  store: JobStore;
  webhooks: { pendingCount(): Promise<number> };
  supervisor: Supervisor;
  config: Pick<Config, 'dataFolder' | 'queueJobsMax'>;
  version: string;
  startTimeMs: number;
}

/** Scrapes within this time get the same text, so that frequent scrapes do not load the store. */
const cacheMs = 1000;

/** Reads the metrics that are queried rather than counted, and renders all metrics as text. */
export class ServerMetrics {
  private readonly delay: IntervalHistogram;
  private cached: { text: Promise<string>; timeMs: number } | undefined;

  constructor(private readonly parts: ScrapeParts) {
    this.delay = monitorEventLoopDelay({ resolution: 20 });
    this.delay.enable();
    const { metrics, config, version, startTimeMs } = parts;
    metrics.buildInfo.set({ version, node_version: process.versions.node }, 1);
    metrics.startTime.set(startTimeMs / 1000);
    metrics.queueLimit.set(config.queueJobsMax);
  }

  get contentType(): string {
    return this.parts.metrics.registry.contentType;
  }

  /** The metrics as text, at most a second old. */
  async render(): Promise<string> {
    const nowMs = performance.now();
    if (this.cached === undefined || nowMs - this.cached.timeMs > cacheMs) {
      const text = this.collect();
      this.cached = { text, timeMs: nowMs };
      // A failed result is not cached: the next scrape tries again.
      text.catch(() => (this.cached = undefined));
    }
    return await this.cached.text;
  }

  stop(): void {
    this.delay.disable();
  }

  private async collect(): Promise<string> {
    const { metrics, jobMetrics, store, supervisor, config } = this.parts;
    jobMetrics.forgetOld();
    for (const [state, count] of Object.entries(await store.countByState()))
      metrics.jobs.set({ state }, count);
    metrics.webhookPending.set(await this.parts.webhooks.pendingCount());
    metrics.slots.set(supervisor.slotCount);
    metrics.slotsInUse.set(supervisor.slotsInUse);
    const { bavail, bsize } = await statfs(config.dataFolder);
    metrics.diskFree.set(bavail * bsize);
    metrics.serverMemory.set(process.memoryUsage.rss());
    // The histogram contains whole delays; an idle loop shows its resolution of 20 ms.
    metrics.eventLoopLag.set(Math.max(0, this.delay.percentile(99) / 1e9 - 0.02));
    this.delay.reset();
    return await metrics.registry.metrics();
  }
}
