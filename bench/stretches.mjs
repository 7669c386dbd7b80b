// Preloaded into a server with `--import`: prints a line of JSON for each period in which the event loop was blocked. The length is the
// smaller of the wall time between two turns of the event loop and the processor time of the process in it: load on the machine inflates
// the former, other threads the latter.
const leastMs = 5;

let began = performance.now();
let used = process.cpuUsage();
function turn() {
  const { user, system } = process.cpuUsage(used);
  const stretchMs = Math.min(performance.now() - began, (user + system) / 1000);
  if (stretchMs >= leastMs) process.stdout.write(`${JSON.stringify({ stretchMs })}\n`);
  began = performance.now();
  used = process.cpuUsage();
  setImmediate(turn);
}
// Starts after loading: no client is served before.
setTimeout(turn, 0);
