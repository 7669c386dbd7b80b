// Trains on request with one thread: requests and answers are one JSON line each (bench/sides/child.mjs).
import { createInterface } from 'node:readline';
import { openDevice } from '../../engine/dist/index.js';
import { Dataset } from '../../engine/dist/data/index.js';
import { openE4m3Cpu } from '../sides/e4m3Device.mjs';
import { trainOne } from './trainOne.mjs';

console.log = console.error; // standard output is only for answers
answer({});
for await (const line of createInterface({ input: process.stdin })) {
  const { datasetFolder, spec } = JSON.parse(line);
  try {
    const { device: name, precision } = spec;
    const device =
      name === 'native' && precision === 'fp8Base'
        ? openE4m3Cpu({ threads: 1 })
        : await openDevice({ device: name, precision, threads: 1 });
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
