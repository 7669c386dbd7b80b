import type { CallOptions as GrpcOptions } from 'nice-grpc-common';
import { Metadata } from 'nice-grpc-common';
import type { CallExtension } from './calls.js';
import { defaultDeadlineMs } from './patience.js';

/** Options of every method. */
export interface CallOptions {
  /** Aborts the call, which then throws a ReloraError with the code CANCELLED and the signal's reason as cause. */
  signal?: AbortSignal;
  /**
   * Longest time for the call, including retries; default: that of the client, except for `evaluate` and `pauseJob`. Streams and waiting calls have no end of their own: for them
   * it is the longest time to retry without any progress. Infinity: none.
   */
  deadlineMs?: number;
  /** Sent with the call, for example for a proxy. */
  metadata?: Record<string, string>;
}

/**
 * The options of a call whose work takes long: unless a deadline is given, it has this one, but a server that cannot be reached is reported
 * as soon as by other calls.
 */
export function patientCall(
  call: GrpcOptions & CallExtension,
  clientDeadlineMs: number | undefined,
  deadlineMs: number,
): GrpcOptions & CallExtension {
  if (call.deadlineMs !== undefined || clientDeadlineMs !== undefined) return call;
  return { ...call, deadlineMs, unreachableMs: defaultDeadlineMs };
}

/** Separates the options of a method into those of the call and the fields of its request. */
export function split<Options extends CallOptions>(
  options: Options,
): [fields: Omit<Options, keyof CallOptions>, call: GrpcOptions & CallExtension] {
  const { signal, deadlineMs, metadata, ...fields } = options;
  return [fields, { signal, deadlineMs, metadata: metadata && Metadata(metadata) }];
}
