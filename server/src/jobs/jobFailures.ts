/**
 * Reasons for which the server itself fails a job or warns in its journal; those of the engine and of the API have their own lists.
 * docs/errors.md is checked against all of them.
 */
export const serverFailures = {
  TRAINER_CRASHED: 'The trainer process crashed several times in a row without a new checkpoint in between.',
  OUT_OF_MEMORY:
    'A child process ran out of memory, or used more than its limit; the message says which. Give it less to do at once, or raise the limit.',
  TRAINER_PROTOCOL: 'The trainer sent something that is not a valid message.',
  TRAINER_ERROR: 'An unexpected error occurred in the trainer; the log has its stack.',
  JOB_EVENTS_EXHAUSTED:
    'The job had more events than a server of version 0.1 kept. Later versions no longer have this failure.',
  INSTRUCTION_SET_MISSING:
    'RELORA_INSTRUCTION_SET forces instructions that the processor does not have. The server does not start with it.',
  NATIVE_UNUSABLE:
    'The native code is missing, damaged, or for another system; the message names the file and what to do. The server does not start with it.',
  CHECKPOINT_CORRUPT: 'The checkpoint at which a forked job begins is damaged. Fork from an earlier one.',
  CHECKPOINT_MISSING: 'Failure of an artifact: the job ended before it had a checkpoint to export.',
  STORAGE_BROKEN:
    'The disk of the data folder failed (EIO) several times in a row without a new checkpoint in between. Repair it, then fork the job from its last checkpoint.',
  RANKS_DIFFER:
    'The processes of a job have different versions of the engine, devices or instruction sets. Install the same version on all servers, and set the same RELORA_INSTRUCTION_SET if their processors differ.',
  DATASET_NOT_READY: 'The data set of the job no longer exists, or is not ready.',
} as const;

/** Reasons for which a task (preparing a data set, generating, previewing) fails, in addition to those of the engine. */
export const taskFailures = {
  TASK_CRASHED: 'The process of the task crashed.',
  TASK_TIMED_OUT: 'The task took longer than RELORA_TASK_TIMEOUT_SECONDS.',
  TASK_ABORTED: 'The task was aborted by its caller, or because the server stops.',
  TASKS_BUSY: 'Too many tasks are waiting for a process.',
  STORAGE_FULL: 'The disk is full.',
  STORAGE_UNWRITABLE: 'A folder of the server cannot be written; the message names it.',
  STORAGE_BROKEN: 'The disk of the server cannot be read or written (EIO).',
  TASK_ERROR: 'An unexpected error occurred in the task; the log has its stack.',
} as const;

/** Reasons of warnings in a job's journal that come from the server. */
export const serverWarnings = {
  CHECKPOINT_CORRUPT: 'A checkpoint is damaged; the one before it is used.',
  TRAINER_RESTARTED: 'The trainer crashed, and the job was queued again.',
  STORAGE_FULL: 'The disk is full; the job was paused.',
  STORAGE_UNWRITABLE:
    'The folder of the job cannot be written; the job was paused. The message names the path.',
  EXPORT_FAILED:
    "One of the job's formats could not be exported; the artifact says why, and the job succeeds without it.",
} as const;

export type ServerFailure = keyof typeof serverFailures;
export type ServerWarning = keyof typeof serverWarnings;
export type TaskFailure = keyof typeof taskFailures;
