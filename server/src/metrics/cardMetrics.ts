import type { Logger } from 'pino';
import type { DeviceDescription } from '../jobs/jobDevices.js';
import type { CardReading } from '../trainer/messages.js';
import type { TaskRunner } from '../trainer/taskRunner.js';
import type { Metrics } from './metrics.js';

/** Time between two readings, and the time after which an old reading is no longer served. */
const [intervalMs, staleMs] = [5000, 30_000];
/** Pause before a child that ended is replaced. */
const retryMs = 60_000;

/** Bits of NVML's reasons for a reduced clock, grouped by cause. */
const causes = {
  power: 0x4 | 0x80, // the card's limit, or the power brake of its supply
  thermal: 0x20 | 0x40,
  hardware: 0x8,
} as const;

/**
 * Readings of this server's cards, from a child that uses the management library. A value that a card does not report has no series: it is
 * absent, not zero.
 */
export class CardMetrics {
  private staleTimer: NodeJS.Timeout | undefined;
  private watching: Promise<void> | undefined;

  constructor(
    private readonly metrics: Metrics,
    private readonly tasks: Pick<TaskRunner, 'watchCards'>,
    private readonly log: Logger,
    private readonly stopping: AbortSignal,
  ) {}

  /** Watches these cards; only the first call with any cards has an effect. */
  watch(cards: readonly DeviceDescription[]): void {
    if (cards.length === 0 || this.watching !== undefined) return;
    const models = new Map(cards.map(({ uuid, model }) => [uuid, model]));
    this.watching = this.tasks
      .watchCards({ intervalMs }, this.stopping, (readings) => this.set(readings, models))
      .then(() => {})
      .catch((error: unknown) => {
        this.clear();
        if (this.stopping.aborted) return;
        this.log.info({ err: error }, 'Cards cannot be read; they have no metrics');
        setTimeout(() => {
          this.watching = undefined;
          this.watch(cards);
        }, retryMs).unref();
      });
  }

  private set(readings: readonly CardReading[], models: ReadonlyMap<string, string>): void {
    this.clear();
    for (const reading of readings) {
      const model = models.get(reading.uuid);
      if (model !== undefined) this.setOne(reading, { uuid: reading.uuid, model });
    }
    this.staleTimer = setTimeout(() => this.clear(), staleMs);
    this.staleTimer.unref();
  }

  private setOne(reading: CardReading, labels: { uuid: string; model: string }): void {
    const { metrics } = this;
    const pairs = [
      [metrics.cardUtilization, reading.utilization],
      [metrics.cardMemoryUsed, reading.memoryUsedBytes],
      [metrics.cardMemory, reading.memoryBytes],
      [metrics.cardTemperature, reading.celsius],
      [metrics.cardPower, reading.watts],
    ] as const;
    for (const [gauge, value] of pairs) if (value !== null) gauge.set(labels, value);
    const { throttleBits } = reading;
    if (throttleBits === null) return;
    for (const [cause, bits] of Object.entries(causes))
      metrics.cardThrottled.set({ ...labels, cause }, (throttleBits & bits) === 0 ? 0 : 1);
  }

  private clear(): void {
    clearTimeout(this.staleTimer);
    const { cardUtilization, cardMemoryUsed, cardMemory, cardTemperature, cardPower, cardThrottled } =
      this.metrics;
    for (const gauge of [
      cardUtilization,
      cardMemoryUsed,
      cardMemory,
      cardTemperature,
      cardPower,
      cardThrottled,
    ])
      gauge.reset();
  }
}
