import type { ServerFailure } from '../../jobs/jobFailures.js';

/** What the client is told of an error: the engine's own reasons as they are, for anything else a general one and the stack in the log. */
export function describeError(error: unknown, otherwise: string): { reason: string; message: string } {
  const { reason, code, message, stack } = error as {
    reason?: unknown;
    code?: unknown;
    message?: unknown;
    stack?: unknown;
  };
  const text = String(message ?? error).slice(0, 16_000);
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return { reason: 'STORAGE_FULL', message: `The disk is full (${text})` };
  if (code === 'ERR_OUT_OF_MEMORY' || /^Array buffer allocation failed/.test(text))
    return { reason: 'OUT_OF_MEMORY' satisfies ServerFailure, message: `Memory ran out (${text})` };
  if (typeof reason === 'string' && /^[A-Z][A-Z0-9_]{0,63}$/.test(reason)) return { reason, message: text };
  console.error(stack ?? error);
  return { reason: otherwise, message: text };
}
