// Preloaded into a server with `--import`: a line of JSON for each stretch of work that others had to wait for. Of the time
// that passed between two turns of the event loop and the processor time of the process in it the smaller: a busy machine
// lengthens the one, other threads the other.
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
// What it takes to load the server is no stretch that a client waits for; nobody is served before.
setTimeout(turn, 0);
