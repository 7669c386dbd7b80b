/** How long a test waits for something that must happen: longer means an error, however busy the machine is. */
export const patienceMs = 300_000;

/**
 * Server settings for tests, so that load on the machine does not affect them: limits that would end a slow trainer are high. A test of one
 * of these limits sets it itself.
 */
export const patientSettings = {
  // With their usual low priority, trainers would hardly run on a busy machine.
  RELORA_TRAINER_NICE: '0',
  RELORA_TRAINER_GRACE_SECONDS: '600',
  RELORA_TRAINER_SILENCE_SECONDS: '600',
  RELORA_SHUTDOWN_SECONDS: '600',
};
