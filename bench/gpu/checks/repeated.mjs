import { saveCheckpoint } from '../../../engine/dist/index.js';
import { begin, disposeRun, follow, goldenSpec, ofKind, openText, presetSpec, sha256Of } from './runs.mjs';

export const name = 'repeated';
export const title =
  'The same SHA-256 of all weights and moments from two runs and from one that was resumed';
export const seconds = 15;

const cycle = { rank: 64, alpha: 64, cycleStepCount: 3, restartWarmupStepCount: 1 };
const loraMuon = { ...cycle, adapterOptimizer: 'loraMuon' };

export async function* run({ open, folder, isModel, secondsLeft }) {
  const dataset = await openText(folder);
  const small = { ...goldenSpec, adapter: { ...goldenSpec.adapter, dropout: 0.1 } };
  const specs = isModel
    ? [['golden, dropout', small, 9]]
    : [
        ['golden, dropout', small, 9],
        ['llama-20m', presetSpec('llama-20m'), 4],
        [
          'llama-20m, moments in eight bits',
          presetSpec('llama-20m', { optimizer: { momentType: 'int8' } }),
          4,
        ],
        ['llama-20m, recomputed', presetSpec('llama-20m', { recomputation: 'blocks' }), 4],
        ['llama-20m, LoRA-Muon', presetSpec('llama-20m', { adapter: loraMuon }), 4],
      ];
  for (const [what, spec, stopAfter] of specs) {
    for (const precision of isModel || what.includes(',') ? ['bfloat16'] : ['bfloat16', 'float32']) {
      if (secondsLeft() <= 0)
        return yield { what: 'the rest', outcome: 'not run', figures: 'the time is over' };
      const hashes = [];
      for (let time = 0; time < 2; time++) hashes.push(await whole(open(precision), spec, dataset, folder));
      hashes.push(await resumed(open, precision, spec, dataset, folder, stopAfter));
      const [one, again, inParts] = hashes;
      yield {
        what: `${what}, ${precision}`,
        outcome: one.hash === again.hash && one.hash === inParts.hash ? 'ok' : 'FAULT',
        figures:
          one.hash === again.hash && one.hash === inParts.hash
            ? `${one.hash.slice(0, 16)}, last loss ${one.loss}`
            : `${hashes.map(({ hash, loss }) => `${hash.slice(0, 16)} (${loss})`).join(', ')}: once, again, resumed`,
      };
    }
  }
  await dataset.close();
}

async function whole(device, spec, dataset, folder) {
  const run = await begin(device, spec, dataset, folder);
  const found = await ended(run, device);
  return found;
}

async function resumed(open, precision, spec, dataset, folder, stopAfter) {
  const device = open(precision);
  const first = await begin(device, spec, dataset, folder);
  await follow(first, (event) => event.kind === 'step' && event.step === stopAfter - 1);
  const { path } = await saveCheckpoint(first);
  disposeRun(first);
  device.close();
  const other = open(precision);
  const options = { checkpointPath: path, runFolder: first.folder, attempt: 2 };
  return await ended(await begin(other, spec, dataset, folder, options), other);
}

async function ended(run, device) {
  const loss = ofKind(await follow(run), 'step').at(-1).loss;
  const hash = await sha256Of(run);
  disposeRun(run);
  device.close();
  return { hash, loss };
}
