import { JobState } from './contract.js';

const terminalStates: readonly JobState[] = [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED];

/** Whether a job has ended for good. */
export function isTerminal(state: JobState): boolean {
  return terminalStates.includes(state);
}
