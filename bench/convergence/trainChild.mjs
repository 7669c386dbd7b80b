// Trains what it is asked to on one thread: one JSON line a request, one an answer (bench/sides/child.mjs).
import { createInterface } from 'node:readline';
import { openDevice } from '../../engine/dist/index.js';
import { Dataset } from '../../engine/dist/data/index.js';
import { trainOne } from './trainOne.mjs';

console.log = console.error; // standard output is for answers alone
answer({});
for await (const line of createInterface({ input: process.stdin })) {
  const { datasetFolder, spec } = JSON.parse(line);
  try {
    const { device: name, precision } = spec;
    const device = await openDevice({ device: name, precision, threads: 1 });
    const dataset = await Dataset.open(datasetFolder, { verify: false });
    try {
      answer(await trainOne(spec, { device, dataset }));
    } finally {
      await dataset.close();
    }
  } catch (error) {
    answer({ error: error.stack });
  }
}

function answer(value) {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
