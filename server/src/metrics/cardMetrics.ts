import type { Logger } from 'pino';
import type { DeviceDescription } from '../jobs/jobDevices.js';
import type { CardReading } from '../trainer/messages.js';
import type { TaskRunner } from '../trainer/taskRunner.js';
import type { Metrics } from './metrics.js';

/** Time between two readings, and after which a reading that nothing followed is not served any more. */
const [intervalMs, staleMs] = [5000, 30_000];
/** Wait until a child that ended is replaced. */
const retryMs = 60_000;

/** Bits of NVML's reasons for a clock below the wanted one, by what somebody would look at. */
const causes = {
  power: 0x4 | 0x80, // the limit of the card, or the supply's brake
  thermal: 0x20 | 0x40,
  hardware: 0x8,
} as const;

/**
 * What the cards of this server say of themselves, by a child that reads the management library. What a card does not answer has no
 * series: absent, not zero.
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

  /** Of these cards, from the first call with any on. */
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
