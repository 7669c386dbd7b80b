import { ServiceError } from '../errors.js';
import { TaskFailed } from '../trainer/taskRunner.js';

/** Whether a task failed because a folder has no model that we can read, and not for an outside reason such as the disk. */
export function isFaultOfFolder({ reason }: TaskFailed): boolean {
  return ['MODEL_FOLDER_INVALID', 'SAFETENSORS_INVALID', 'TOKENIZER_INVALID'].includes(reason);
}

/** The error that a client gets when its task failed; anything but a TaskFailed is returned as it is. */
export function taskError(
  error: unknown,
  subject: string,
  signal: AbortSignal,
  stopping: AbortSignal,
): unknown {
  if (!(error instanceof TaskFailed)) return error;
  if (signal.aborted) return new ServiceError('CALL_CANCELLED', {});
  if (stopping.aborted) return new ServiceError('SERVER_STOPPING', {});
  switch (error.reason) {
    case 'TASKS_BUSY':
      return new ServiceError('TASKS_FULL', {});
    case 'TASK_CRASHED':
    case 'TASK_TIMED_OUT':
    case 'TASK_ABORTED':
      return new ServiceError('TASK_CRASHED', { message: error.message });
    case 'STORAGE_BROKEN':
      return new ServiceError('DISK_BROKEN', {});
    default:
      return new ServiceError('MODEL_UNUSABLE', {
        model: subject,
        cause: error.reason,
        message: error.message,
      });
  }
}
