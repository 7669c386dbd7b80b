import type { RunUpdate } from '@relora/engine/plan';
import type { TaskMessage, TrainerMessage } from '../childMessages.js';
import type { ServerMessage, TaskTypes } from '../messages.js';

type Unnumbered<M> = M extends { number: number } ? Omit<M, 'number'> : never;
/** How the server wants the run to end. */
export type StopOrder = { keep: boolean };

/**
 * This process's side of the channel to the server. When the channel closes, the server is gone, and nobody can use our results: the
 * process ends at once, so that it writes nothing that a successor does not expect.
 */
export class ServerChannel {
  /** Aborted by the server's order to stop; the reason is a StopOrder. */
  readonly stop: AbortSignal;
  /** Ticket of the newest order to save a checkpoint and continue; 0 for none. */
  saveTicket = 0;
  /** Updates that came before the run was ready. */
  private readonly early: RunUpdate[] = [];
  private onUpdate = (update: RunUpdate): void => void this.early.push(update);
  private readonly stopping = new AbortController();
  private number = 0;
  private acknowledged = 0;
  private unacknowledgedMax = 1;
  private wake = (): void => {};

  constructor(private readonly onOrder: (order: Extract<ServerMessage, { type: 'train' | 'task' }>) => void) {
    this.stop = this.stopping.signal;
    process.on('disconnect', () => process.exit(1));
    process.on('message', (message: ServerMessage) => this.hear(message));
  }

  /** Passes updates of the run on, including those that came before. */
  listenForUpdates(listener: (update: RunUpdate) => void): void {
    this.early.splice(0).forEach(listener);
    this.onUpdate = listener;
  }

  /**
   * Sends a numbered message of a trainer, then waits while too many are not acknowledged: a slow journal slows the run down instead of
   * messages piling up.
   */
  async report(message: Unnumbered<TrainerMessage>): Promise<void> {
    this.send({ ...message, number: ++this.number } as TrainerMessage);
    await this.untilUnacknowledged(this.unacknowledgedMax - 1);
  }

  /** Resolves when the server has everything on its disk. */
  async flushed(): Promise<void> {
    await this.untilUnacknowledged(0);
  }

  /** Sends a message of a task and resolves when it has left this process. */
  async answer<K extends keyof TaskTypes>(message: TaskMessage<K>): Promise<void> {
    await new Promise<void>((resolve) => process.send!(message, undefined, {}, () => resolve()));
  }

  private send(message: TrainerMessage): void {
    // The callback takes the error of a closed channel, which `disconnect` reports anyway.
    if (process.connected) process.send!(message, undefined, {}, () => {});
  }

  private hear(message: ServerMessage): void {
    switch (message.type) {
      case 'train':
        this.unacknowledgedMax = message.order.unacknowledgedMax;
        this.onOrder(message);
        break;
      case 'task':
        this.onOrder(message);
        break;
      case 'stop':
        this.stopping.abort({ keep: message.keep } satisfies StopOrder);
        break;
      case 'save':
        this.saveTicket = message.ticket;
        break;
      case 'update':
        this.onUpdate(message.update);
        break;
      case 'ack':
        this.acknowledged = message.number;
        this.wake();
        break;
    }
  }

  private async untilUnacknowledged(count: number): Promise<void> {
    while (this.number - this.acknowledged > count)
      await new Promise<void>((resolve) => (this.wake = resolve));
  }
}
