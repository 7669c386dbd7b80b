export interface Signals {
  /** From now on a signal to stop calls this, the first time; until then it ends the process. */
  onStop(stop: (signal: NodeJS.Signals) => void): void;
}

/**
 * Hears SIGTERM and SIGINT. While the server starts nothing is promised to anybody and the store is safe whenever the process ends, so
 * it ends at once. A second signal does so too: somebody means it, and trainers end by themselves when the server is gone.
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
