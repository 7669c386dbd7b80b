import type { ServerFailure } from '../../jobs/jobFailures.js';
import { storageFault } from '../../store/storageFault.js';

/**
 * An error as the client sees it: reasons of the engine unchanged; for anything else a general reason, with the stack in the log. `folder`
 * is what the process writes to: the advice to make a path writable is only given for that.
 */
export function describeError(
  error: unknown,
  otherwise: string,
  folder?: string,
): { reason: string; message: string } {
  const { reason, code, message, stack, path } = error as {
    path?: unknown;
    reason?: unknown;
    code?: unknown;
    message?: unknown;
    stack?: unknown;
  };
  const text = String(message ?? error).slice(0, 16_000);
  const fault = storageFault(error);
  const isOurs = folder !== undefined && typeof path === 'string' && path.startsWith(folder);
  if (fault !== undefined && (fault.reason !== 'STORAGE_UNWRITABLE' || code === 'EROFS' || isOurs))
    return fault;
  if (code === 'ERR_OUT_OF_MEMORY' || /^Array buffer allocation failed/.test(text))
    return { reason: 'OUT_OF_MEMORY' satisfies ServerFailure, message: `Memory ran out (${text})` };
  if (typeof reason === 'string' && /^[A-Z][A-Z0-9_]{0,63}$/.test(reason)) return { reason, message: text };
  console.error(stack ?? error);
  return { reason: otherwise, message: text };
}
