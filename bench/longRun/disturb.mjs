/** Kills the trainer at an interval, and every second time its server too. Returns a function that ends this. */
export function killRegularly(server, seconds) {
  let count = 0;
  let isDone = false;
  let present = Promise.resolve();
  const timer = setInterval(() => {
    if (!isDone) present = server.kill(count++ % 2 === 1);
  }, seconds * 1000);
  return async () => {
    isDone = true;
    clearInterval(timer);
    await present;
  };
}

/** Halts the trainer whenever the run is ahead of a pace of `stepCount` steps in `seconds`. Returns a function that ends this. */
export function pace(server, losses, { stepCount, seconds }) {
  const begunMs = performance.now() - (losses.byStep.length / stepCount) * seconds * 1000;
  const timer = setInterval(() => {
    const due = ((performance.now() - begunMs) / (seconds * 1000)) * stepCount;
    const isAhead = losses.byStep.length > due && losses.byStep.length < stepCount - 1;
    server.signalChildren(isAhead ? 'SIGSTOP' : 'SIGCONT');
  }, 500);
  return () => {
    clearInterval(timer);
    server.signalChildren('SIGCONT');
  };
}
