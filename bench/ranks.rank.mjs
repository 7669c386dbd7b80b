// One process of bench/ranks.mjs; its order is the first argument, and file 3 the memory that the processes share.
import { createHash } from 'node:crypto';
import {
  alone,
  beginRun,
  ExchangeCollective,
  openDevice,
  SharedMemory,
  trainLoop,
} from '../engine/dist/index.js';
import { Dataset } from '../engine/dist/data/index.js';

const { rank, size, spec, datasetFolder, runFolder } = JSON.parse(process.argv[2]);
const device = await openDevice({ device: 'native', precision: spec.precision, threads: 1 });

/** Processor time of this process while it sums: it does nothing else then, but for what waits for the others. */
let sumCpuSeconds = 0;
const cpuSeconds = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
class TimedMemory extends SharedMemory {
  async sum(values) {
    const before = cpuSeconds();
    await super.sum(values);
    sumCpuSeconds += cpuSeconds() - before;
  }
}
const collective = size === 1 ? alone : new ExchangeCollective(device, new TimedMemory(3, rank, size));
const dataset = await Dataset.open(datasetFolder, { verify: false });
const run = await beginRun({ spec, device, collective, dataset, runFolder, attempt: 1 });
const losses = [];
let before = null;
let after = 0;
for await (const event of trainLoop(run, new AbortController().signal)) {
  if (event.kind !== 'step') continue;
  losses.push(event.loss);
  // From the first step's end on: not what a process takes to begin.
  if (before === null) before = cpuSeconds();
  else after = cpuSeconds();
}
const hash = createHash('sha256');
for (const parameter of run.model.parameters.values())
  hash.update(new Uint8Array((await run.model.valuesOf(parameter)).buffer));
console.log(
  JSON.stringify({
    losses,
    cpuSeconds: ((after - before) * losses.length) / (losses.length - 1),
    sumCpuSeconds,
    summedBytes: collective.summedBytes,
    weightsSha256: hash.digest('hex'),
  }),
);
process.exit(0);
