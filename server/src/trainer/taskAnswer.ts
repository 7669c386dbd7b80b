import { parseTaskMessage } from './childMessages.js';
import type { TaskFailure } from '../jobs/jobFailures.js';
import type { TaskTypes } from './messages.js';

/** A failed task: `reason` is in UPPER_SNAKE_CASE, from the engine or from taskFailures. */
export class TaskFailed extends Error {
  override name = 'TaskFailed';
  constructor(
    readonly reason: string,
    message: string,
  ) {
    super(message);
  }
}

/** The outcome of a task: the first that its child, or whoever gives it up, reports. */
export class TaskAnswer<K extends keyof TaskTypes> {
  given: { result: TaskTypes[K]['result'] } | { failed: TaskFailed } | undefined;

  constructor(private readonly onPart: ((part: TaskTypes[K]['part']) => void) | undefined) {}

  /** Takes a message of the child, and returns what should happen with the child. */
  take(raw: unknown): 'going' | 'answered' | 'unreadable' {
    if (this.given !== undefined) return 'going';
    const message = parseTaskMessage(raw);
    if (message === undefined) {
      this.fail('TASK_CRASHED', 'The task sent something that is not a message');
      return 'unreadable';
    }
    if (message.type === 'part') {
      this.onPart?.(message.value as TaskTypes[K]['part']);
      return 'going';
    }
    this.given =
      message.type === 'result'
        ? { result: message.value as TaskTypes[K]['result'] }
        : { failed: new TaskFailed(message.reason, message.message) };
    return 'answered';
  }

  fail(reason: TaskFailure, message: string): void {
    this.given ??= { failed: new TaskFailed(reason, message) };
  }

  /** Throws if the task failed. */
  result(): TaskTypes[K]['result'] {
    if (this.given === undefined) throw new Error('The task has not answered');
    if ('failed' in this.given) throw this.given.failed;
    return this.given.result;
  }
}

/** Gives a task up when its caller does or its time is over. Returns the function that ends this. */
export function givingUp(
  { signal, timeoutMs }: { signal: AbortSignal; timeoutMs: number | null },
  giveUp: (reason: TaskFailure, message: string) => void,
): () => void {
  const abort = (): void => giveUp('TASK_ABORTED', 'The task was given up');
  signal.addEventListener('abort', abort, { once: true });
  if (signal.aborted) abort();
  const late = (): void => giveUp('TASK_TIMED_OUT', `The task took longer than ${timeoutMs! / 1000} s`);
  const timer = timeoutMs === null ? undefined : setTimeout(late, timeoutMs);
  return () => {
    clearTimeout(timer);
    signal.removeEventListener('abort', abort);
  };
}
