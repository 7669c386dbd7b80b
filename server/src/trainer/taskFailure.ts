import type { JobFailure } from '../jobs/job.js';
import type { TaskFailure } from '../jobs/jobFailures.js';
import { isOfStore } from '../store/storeError.js';
import { storageCures, storageFault } from '../store/storageFault.js';
import { TaskFailed } from './taskRunner.js';

/**
 * Why a single piece of work failed: the error that its process reported, a fault of its folder with advice, or a fault of ours. An error
 * of the store says nothing about the work, and is thrown again.
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
