// One process of bench/ranks.mjs and bench/reductions.mjs; its rank is the first argument. File descriptor 3 is the processes' shared
// memory, unless MPI started them.
import { createHash } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import {
  alone,
  beginRun,
  ExchangeCollective,
  Mpi,
  openDevice,
  SharedMemory,
  trainLoop,
} from '../engine/dist/index.js';
import { Dataset } from '../engine/dist/data/index.js';

const { spec, datasetFolder, mpiFolder, overlap, ...order } = JSON.parse(process.argv[2]);
const device = await openDevice({ device: 'native', precision: spec.precision, threads: 1 });
const exchange = mpiFolder === undefined ? new SharedMemory(3, order.rank, order.size) : new Mpi();
const { rank, size } = exchange;
const runFolder = order.runFolder ?? join(mpiFolder, String(rank));
mkdirSync(runFolder, { recursive: true });

/** Processor time of this process during sums, from the end of its computation on: it does nothing else then except wait for the others. */
let sumCpuSeconds = 0;
/** Duration of each of them, including the wait for later processes. */
const sumTimes = [];
const cpuSeconds = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
if (overlap !== undefined) Object.defineProperty(exchange, 'overlaps', { value: overlap });
const sum = exchange.sum.bind(exchange);
let waitsFrom;
const waits = () => (waitsFrom = { cpu: cpuSeconds(), time: performance.now() });
exchange.sum = async (values, type, written = values.length) => {
  const reach = exchange.constructor.prototype.reach.bind(exchange);
  exchange.reach = (count) => {
    if (count === values.length) waits();
    reach(count);
  };
  if (written === values.length) waits();
  await sum(values, type, written);
  if (values.length > 0) sumTimes.push((performance.now() - waitsFrom.time) / 1000);
  sumCpuSeconds += cpuSeconds() - waitsFrom.cpu;
};
const collective = size === 1 ? alone : new ExchangeCollective(device, exchange);
const dataset = await Dataset.open(datasetFolder, { verify: false });
const run = await beginRun({ spec, device, collective, dataset, runFolder, attempt: 1 });
const losses = [];
const stepTimes = [];
let heldOutLoss = null;
let before = null;
let after = 0;
for await (const event of trainLoop(run, new AbortController().signal)) {
  if (event.kind === 'evaluation') heldOutLoss = event.loss;
  if (event.kind !== 'step') continue;
  losses.push(event.loss);
  stepTimes.push(event.stepSeconds);
  // From the end of the first step on, so that startup does not count.
  if (before === null) before = cpuSeconds();
  else after = cpuSeconds();
}
const hash = createHash('sha256');
for (const parameter of run.model.parameters.values())
  hash.update(new Uint8Array((await run.model.valuesOf(parameter)).buffer));
const result = {
  rank,
  losses,
  heldOutLoss,
  stepTimes,
  sumTimes,
  cpuSeconds: ((after - before) * losses.length) / (losses.length - 1),
  sumCpuSeconds,
  summedBytes: collective.summedBytes,
  weightsSha256: hash.digest('hex'),
};
await new Promise((resolve) => process.stdout.write(`${JSON.stringify(result)}\n`, resolve));
collective.leave(true);
process.exit(0);
