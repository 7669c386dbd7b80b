// Trains in a separate process and prints each event on a line, until it is killed. After each event it waits for a byte from its parent,
// so that it is never further than the parent knows.
// Arguments: specification as JSON, folder of the data set, folder of the run.
import { readSync, writeSync } from 'node:fs';
import { beginRun, openDevice, trainLoop } from '@relora/engine';
import { Dataset } from '@relora/engine/data';

const [specJson, datasetFolder, runFolder] = process.argv.slice(2);
const spec = JSON.parse(specJson);
const device = await openDevice({ device: spec.device, precision: spec.precision, threads: 2 });
const dataset = await Dataset.open(datasetFolder, { verify: false });
const run = await beginRun({ spec, device, dataset, runFolder, attempt: 1 });
for await (const event of trainLoop(run, new AbortController().signal)) {
  writeSync(1, `${event.kind} ${event.step}\n`);
  readSync(0, Buffer.alloc(1));
}
