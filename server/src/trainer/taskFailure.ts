import type { JobFailure } from '../jobs/job.js';
import type { TaskFailure } from '../jobs/jobFailures.js';
import { isOfStore } from '../store/storeError.js';
import { storageCures, storageFault } from '../store/storageFault.js';
import { TaskFailed } from './taskRunner.js';

/**
 * Why one piece of work failed, which harms nothing else: what its process said, a fault of its folder with the cure, or a
 * fault of ours. An error of the store says nothing about the piece, and is thrown on.
 */
export function failureOf(error: unknown, afterwards: string): JobFailure {
  if (error instanceof TaskFailed) return { reason: error.reason, message: error.message };
  if (isOfStore(error)) throw error;
  const fault = storageFault(error);
  if (fault !== undefined)
    return { ...fault, message: `${fault.message}; ${storageCures[fault.reason]}, ${afterwards}` };
  const reason: TaskFailure = 'TASK_ERROR';
  return { reason, message: error instanceof Error ? error.message : String(error) };
}
