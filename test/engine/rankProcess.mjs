// One rank of a run, in its own process: its order is the first argument, as JSON; file descriptor 3 is the memory shared by the ranks. Its
// last line has its result. If mpirun started it, MPI gives the rank, and the result goes to a file.
import { createHash } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  beginRun,
  disposeRun,
  ExchangeCollective,
  Mpi,
  openDevice,
  saveCheckpoint,
  SharedMemory,
  trainLoop,
} from '@relora/engine';
import { Dataset } from '@relora/engine/data';

const order = JSON.parse(process.argv[2]);
const { spec, datasetFolder, mpiFolder, checkpointPath, stopAfter, spoilsWeightAt, killsAt } = order;
const device = await openDevice({ device: order.device ?? 'native', precision: spec.precision, threads: 1 });
const exchange = mpiFolder === undefined ? new SharedMemory(3, order.rank, order.size) : new Mpi();
const { rank } = exchange;
if (order.overlaps !== undefined) Object.defineProperty(exchange, 'overlaps', { value: order.overlaps });
const runFolder = order.runFolder ?? join(mpiFolder, String(rank));
const report = (result) => {
  if (mpiFolder === undefined) console.log(JSON.stringify(result));
  else writeFileSync(join(mpiFolder, `${rank}.json`), JSON.stringify(result));
};
const collective = new ExchangeCollective(device, exchange);
let dataset;
let isOver = false;
try {
  dataset = await Dataset.open(datasetFolder, { verify: false });
  const run = await beginRun({ spec, device, collective, dataset, runFolder, checkpointPath, attempt: 1 });
  const abort = new AbortController();
  const events = [];
  for await (const event of trainLoop(run, abort.signal)) {
    events.push(event);
    // In the middle of the next sum.
    if (rank === 1 && event.kind === 'step' && event.step === killsAt)
      exchange.reach = () => process.kill(process.pid, 'SIGKILL');
    // Like a memory fault: the sums do not show it.
    if (event.kind === 'step' && event.step === spoilsWeightAt) {
      const { buffer } = run.model.parameters.get('model.layers.0.input_layernorm.weight');
      await device.changeOnHost(buffer, async (values) => void (values[0] += 1e-7 * values[0] + 1e-6));
    }
    if (rank === 0 && event.kind === 'step' && event.step === stopAfter) abort.abort();
  }
  // Within a cycle that ranks train independently, only the previous checkpoint exists.
  const saved = rank > 0 ? null : run.isApart ? run.lastSaved : await saveCheckpoint(run);
  const weights = {};
  const all = createHash('sha256');
  for (const parameter of run.model.parameters.values()) {
    const values = await run.model.valuesOf(parameter);
    weights[parameter.name] = [...values.subarray(0, 64)];
    all.update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  }
  const moments = createHash('sha256');
  for (const { read } of run.optimizer.state()) {
    const values = await read();
    moments.update(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
  }
  report({
    events,
    weights,
    weightsSha256: all.digest('hex'),
    momentsSha256: moments.digest('hex'),
    checkpointPath: saved?.path,
    summedBytes: collective.summedBytes,
  });
  isOver = true;
  disposeRun(run);
} catch (error) {
  report({ problem: { reason: error.reason, message: error.message } });
  process.exitCode = 1;
} finally {
  collective.leave(isOver);
  await dataset?.close();
}
