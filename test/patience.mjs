/** How long a test waits for what must happen: only a fault takes so long, however busy the machine is. */
export const patienceMs = 300_000;

/**
 * Settings of a server in tests, so that a busy machine does not decide them: what would end a trainer for being slow comes late. A
 * test whose subject is one of these limits sets it itself.
 */
export const patientSettings = {
  // At the low priority that trainers have otherwise they would hardly run beside busy processes.
  RELORA_TRAINER_NICE: '0',
  RELORA_TRAINER_GRACE_SECONDS: '600',
  RELORA_TRAINER_SILENCE_SECONDS: '600',
  RELORA_SHUTDOWN_SECONDS: '600',
};
