export interface Signals {
  /** From now on the first signal to stop calls this; until then a signal ends the process. */
  onStop(stop: (signal: NodeJS.Signals) => void): void;
}

/**
 * Listens for SIGTERM and SIGINT. While the server starts, it has promised nothing and the store is safe at any moment, so a signal ends it
 * at once. So does a second signal: it is deliberate, and trainers end by themselves when the server is gone.
 */
export function hearSignals(): Signals {
  let stop = (_: NodeJS.Signals): void => process.exit(0);
  let isStopping = false;
  const hear = (signal: NodeJS.Signals): void => {
    if (isStopping) process.exit(1);
    isStopping = true;
    stop(signal);
  };
  process.on('SIGTERM', hear);
  process.on('SIGINT', hear);
  return { onStop: (wanted) => (stop = wanted) };
}
