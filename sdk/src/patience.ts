import { sleep } from './aborts.js';
import { ReloraError, type StatusName } from './errors.js';
import type { Logger } from './logger.js';

export interface RetryOptions {
  /** Tries without any progress, the first included; by default as many as the deadline allows. 1 turns retries off. */
  attemptsMax: number;
  /** The first pause; each is twice the one before. Half of every pause is left to chance. */
  initialDelayMs: number;
  maxDelayMs: number;
}

export const defaultRetries: RetryOptions = {
  attemptsMax: Number.POSITIVE_INFINITY,
  initialDelayMs: 100,
  maxDelayMs: 5000,
};

/** How long calls are repeated, unless the caller says otherwise. */
export const defaultDeadlineMs = 60_000;

export interface PatienceOptions {
  /** Longest time from the first failure on, or from the beginning where `endsAtMs` says so. */
  deadlineMs: number;
  retries: RetryOptions;
  logger: Logger;
  /** What is tried, for the log. */
  what: string;
  signal: AbortSignal;
  /** On the clock of `performance.now()`, which the time of day does not move: the end of a call that has one. */
  endsAtMs?: number;
  /** Further codes that are worth another try here. */
  also?: readonly StatusName[];
}

/**
 * How everything that may be repeated is repeated: calls, watches, uploads and downloads. It is asked after each failure
 * whether to try again, and waits. What the server advises is obeyed; without advice pauses grow, with jitter, so that many
 * clients do not come back at the same instant.
 */
export class Patience {
  private failures = 0;
  private endsAtMs: number | undefined;

  constructor(private readonly options: PatienceOptions) {
    this.endsAtMs = options.endsAtMs;
  }

  /** Something came: what fails from now on has the whole time again. */
  progress(): void {
    this.failures = 0;
    this.endsAtMs = this.options.endsAtMs;
  }

  /** Returns when it is time to try again; throws the error when that would not help, and the reason of the signal when it aborts. */
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
    // Towards the end pauses shrink, so that the last try comes just before it.
    const delayMs = advisedMs + Math.min(backoffMs(this.failures, retries), spareMs / 2);
    const fields = { what, code: error.code, reason: error.reason, failures: this.failures, delayMs };
    logger.warn(fields, `${what} failed and is repeated: ${error.message}`);
    await sleep(delayMs, signal);
  }
}

/** Whether the same call may succeed later: the way to the server broke, or the server says when to come back. */
function isWorthAnother(error: ReloraError): boolean {
  return error.retryDelayMs !== undefined || isConnectionFault(error);
}

/**
 * Whether the way to the server broke rather than the server refused. A stream that is reset arrives as INTERNAL, one that
 * a proxy answers as UNKNOWN; errors of the server itself always have a reason.
 */
export function isConnectionFault({ code, reason }: ReloraError): boolean {
  return code === 'UNAVAILABLE' || ((code === 'INTERNAL' || code === 'UNKNOWN') && reason === '');
}

/** Doubles with each failure, from 1; between half of it and all. */
export function backoffMs(failures: number, { initialDelayMs, maxDelayMs }: RetryOptions): number {
  return Math.min(maxDelayMs, initialDelayMs * 2 ** (failures - 1)) * (0.5 + Math.random() / 2);
}
