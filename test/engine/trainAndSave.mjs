// Trains in a process of its own and tells each event in a line, until it is killed.
// Arguments: specification as JSON, folder of the data set, folder of the run.
import { beginRun, openDevice, trainLoop } from '@relora/engine';
import { Dataset } from '@relora/engine/data';

const [specJson, datasetFolder, runFolder] = process.argv.slice(2);
const spec = JSON.parse(specJson);
const device = await openDevice({ device: spec.device, precision: spec.precision, threads: 2 });
const dataset = await Dataset.open(datasetFolder, { verify: false });
const run = await beginRun({ spec, device, dataset, runFolder, attempt: 1 });
for await (const event of trainLoop(run, new AbortController().signal)) {
  process.stdout.write(`${event.kind} ${event.step}\n`);
}
