/**
 * Reasons for which the server itself fails a job, or warns in its journal; those of the engine and of the API stand in
 * their own lists. docs/errors.md is checked against all of them.
 */
export const serverFailures = {
  TRAINER_CRASHED:
    'The trainer process ended without an answer several times in a row, without a new checkpoint between.',
  OUT_OF_MEMORY:
    'Memory ran out in a child process, or it took more than it may have: the message says which. Ask for less of it.',
  TRAINER_PROTOCOL: 'The trainer sent something that is not a message of ours.',
  TRAINER_ERROR: 'The trainer met an error that it does not know; the log has its stack.',
  JOB_EVENTS_EXHAUSTED:
    'The job left more events than a server of version 0.1 kept. No job fails by it any more.',
  INSTRUCTION_SET_MISSING:
    'RELORA_INSTRUCTION_SET forces instructions that the processor does not have. The server does not start with it.',
  NATIVE_UNUSABLE:
    'The native code is missing, damaged, or for another system; the message names the file and what to do. The server does not start with it.',
  CHECKPOINT_CORRUPT:
    'The checkpoint that a forked job begins at is not what was saved. Fork from one before it.',
  CHECKPOINT_MISSING: 'The job ended before it had a checkpoint to export. Of an artifact.',
  STORAGE_BROKEN:
    'The disk of the data folder failed (EIO) several times in a row, without a new checkpoint between. See to it, then fork the job from its last checkpoint.',
  RANKS_DIFFER:
    'Processes of one job do not compute alike: another version of the engine, another device or other instructions. Give all servers the same version, and RELORA_INSTRUCTION_SET where their processors differ.',
  DATASET_NOT_READY: 'The data set of the job is not there any more, or not ready.',
} as const;

/** Reasons for which a task (preparing a data set, generating, previewing) fails beside those of the engine. */
export const taskFailures = {
  TASK_CRASHED: 'The process of the task ended without an answer.',
  TASK_TIMED_OUT: 'The task took longer than RELORA_TASK_TIMEOUT_SECONDS.',
  TASK_ABORTED: 'The task was given up, by its caller or because the server stops.',
  TASKS_BUSY: 'Too many tasks wait for a process.',
  STORAGE_FULL: 'The disk is full.',
  STORAGE_UNWRITABLE: 'A folder of the server cannot be written; the message names it.',
  STORAGE_BROKEN: 'The disk of the server cannot be read or written (EIO).',
  TASK_ERROR: 'The task met an error that it does not know; the log has its stack.',
} as const;

/** Reasons of warnings in a job's journal that come from the server. */
export const serverWarnings = {
  CHECKPOINT_CORRUPT: 'A checkpoint is not what was saved; the one before it is used.',
  TRAINER_RESTARTED: 'The trainer ended without an answer, and the job was queued again.',
  STORAGE_FULL: 'The disk is full; the job was paused.',
  STORAGE_UNWRITABLE:
    'The folder of the job cannot be written; the job was paused. The message names the path.',
  EXPORT_FAILED:
    'A format of the job could not be exported; the artifact says why, and the job succeeds without it.',
} as const;

export type ServerFailure = keyof typeof serverFailures;
export type ServerWarning = keyof typeof serverWarnings;
export type TaskFailure = keyof typeof taskFailures;
