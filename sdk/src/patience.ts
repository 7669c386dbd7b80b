import { sleep } from './aborts.js';
import { ReloraError, type StatusName } from './errors.js';
import type { Logger } from './logger.js';

export interface RetryOptions {
  /** Attempts without any progress, including the first; default: as many as the deadline allows. 1 turns retries off. */
  attemptsMax: number;
  /** The first pause; each further one is twice as long. Half of every pause is random. */
  initialDelayMs: number;
  maxDelayMs: number;
}

export const defaultRetries: RetryOptions = {
  attemptsMax: Number.POSITIVE_INFINITY,
  initialDelayMs: 100,
  maxDelayMs: 5000,
};

/**
 * Further codes to open a stream again on, if it can continue where it was: the server ends that of a slow reader with ABORTED, or cuts it
 * off, which arrives as CANCELLED.
 */
export const worthAnotherStream = ['ABORTED', 'DEADLINE_EXCEEDED', 'CANCELLED'] as const;

/** How long calls are retried, unless the caller says otherwise. */
export const defaultDeadlineMs = 60_000;

export interface PatienceOptions {
  /** Longest time since the first failure, or since the beginning if `endsAtMs` is set. */
  deadlineMs: number;
  retries: RetryOptions;
  logger: Logger;
  /** What is retried, for the log. */
  what: string;
  signal: AbortSignal;
  /** End of a call with a deadline, on the clock of `performance.now()`, which changes of the time of day do not affect. */
  endsAtMs?: number;
  /** Further codes to retry on. */
  also?: readonly StatusName[];
}

/**
 * How everything that may be retried is retried: calls, watches, uploads and downloads. It is asked after each failure whether to try
 * again, and waits. It follows the server's advice; without advice, pauses grow, with jitter, so that many clients do not come back at the
 * same moment.
 */
export class Patience {
  private failures = 0;
  private endsAtMs: number | undefined;

  constructor(private readonly options: PatienceOptions) {
    this.endsAtMs = options.endsAtMs;
  }

  /** Call this when something arrived: later failures then have the whole time again. */
  progress(): void {
    this.failures = 0;
    this.endsAtMs = this.options.endsAtMs;
  }

  /** Resolves when it is time to try again; throws the error if that would not help, or the signal's reason if it is aborted. */
  async pause(error: unknown): Promise<void> {
    const { deadlineMs, retries, logger, what, signal, also = [] } = this.options;
    signal.throwIfAborted();
    if (!(error instanceof ReloraError) || !(isWorthAnother(error) || also.includes(error.code))) throw error;
    this.failures++;
    this.endsAtMs ??= performance.now() + deadlineMs;
    const leftMs = this.endsAtMs - performance.now();
    const advisedMs = error.retryDelayMs ?? 0;
    const spareMs = leftMs - advisedMs;
    if (this.failures >= retries.attemptsMax || spareMs <= retries.initialDelayMs) throw error;
    // Towards the end pauses shrink, so that the last attempt comes just before it.
    const delayMs = advisedMs + Math.min(backoffMs(this.failures, retries), spareMs / 2);
    const fields = { what, code: error.code, reason: error.reason, failures: this.failures, delayMs };
    logger.warn(fields, `${what} failed and is repeated: ${error.message}`);
    await sleep(delayMs, signal);
  }
}

/** Whether the same call may succeed later: the connection broke, or the server says when to come back. */
function isWorthAnother(error: ReloraError): boolean {
  return error.retryDelayMs !== undefined || isConnectionFault(error);
}

/**
 * Whether the connection broke, as opposed to a refusal by the server. A stream that is reset arrives as INTERNAL, one that a proxy answers
 * as UNKNOWN; errors of the server itself always have a reason.
 */
export function isConnectionFault({ code, reason }: ReloraError): boolean {
  return code === 'UNAVAILABLE' || ((code === 'INTERNAL' || code === 'UNKNOWN') && reason === '');
}

/** Doubles with each failure, counted from 1; random between half of that and all. */
export function backoffMs(failures: number, { initialDelayMs, maxDelayMs }: RetryOptions): number {
  return Math.min(maxDelayMs, initialDelayMs * 2 ** (failures - 1)) * (0.5 + Math.random() / 2);
}
