// Small complete runs: node runs.mjs REQUEST prints as JSON the losses of a run with each instruction set, and whether a run that was
// interrupted and resumed has the same losses and weights. REQUEST: a file with the spec and the data folder.
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  beginRun,
  disposeRun,
  loadNativeAddon,
  openDevice,
  saveCheckpoint,
  trainLoop,
} from '../../engine/dist/index.js';
import { Dataset } from '../../engine/dist/data/index.js';

const { spec, dataset: folder, precisions, stopAfter } = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const dataset = await Dataset.open(folder, { verify: true });
const at = mkdtempSync(join(tmpdir(), 'relora-arm-runs-'));
const found = {};
try {
  for (const instructionSet of loadNativeAddon().describe().instructionSets)
    for (const precision of precisions) {
      const whole = await result(instructionSet, precision);
      const resumed = await result(instructionSet, precision, stopAfter);
      const isResumedEqual = JSON.stringify(whole) === JSON.stringify(resumed);
      found[`${instructionSet} ${precision}`] = { ...whole, isResumedEqual };
    }
} finally {
  rmSync(at, { recursive: true });
}
await dataset.close();
console.log(JSON.stringify(found));

async function result(instructionSet, precision, stopAt = Infinity) {
  const runFolder = mkdtempSync(join(at, 'run-'));
  const begin = async (options) => {
    const device = await openDevice({ device: 'native', precision, instructionSet, threads: 2 });
    return await beginRun({ spec, device, dataset, runFolder, attempt: 1, ...options });
  };
  let run = await begin({});
  const losses = await lossesOf(run, stopAt);
  if (stopAt < Infinity) {
    const { path } = await saveCheckpoint(run);
    disposeRun(run);
    run = await begin({ checkpointPath: path, attempt: 2 });
    losses.push(...(await lossesOf(run)));
  }
  const hash = createHash('sha256');
  for (const parameter of run.model.parameters.values()) hash.update(await run.model.valuesOf(parameter));
  disposeRun(run);
  return { losses, weights: hash.digest('hex') };
}

async function lossesOf(run, stopAt = Infinity) {
  const [losses, abort] = [[], new AbortController()];
  for await (const event of trainLoop(run, abort.signal)) {
    if (event.kind !== 'step') continue;
    losses.push(event.loss);
    if (event.step === stopAt - 1) abort.abort();
  }
  return losses;
}
