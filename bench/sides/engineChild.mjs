// Our engine as a child process that speaks the protocol of pytorch.py: one JSON line a request, one an answer.
//
//     {"open": {"config": {…}, "rank": 128, "alpha": 128, "batch": 8, "time": 256, "precision": "bfloat16"}}
//     {"step": {}}       -> {"seconds": 1.23, "loss": 10.4, "peakBytes": 2.1e9}
//
// `profile` before `open` times every native call from then on; after it, it gives what was counted.
import { createInterface } from 'node:readline';
import { loadNativeAddon, selectBackend } from '../../engine/dist/index.js';
import { HeadCase } from './headCase.mjs';
import { Profile } from './profile.mjs';
import { Trainer } from './trainer.mjs';

let profile = null;
/** What `step` steps: a Trainer or a HeadCase. */
let subject = null;

const requests = {
  async open({ precision, instructionSet, threads, ...model }) {
    const backend = await selectBackend({ device: 'native', precision, instructionSet, threads });
    subject = new Trainer(model, backend);
    return { parameterCount: subject.parameterCount, precision: backend.precision };
  },
  async openHead({ precision, instructionSet, threads, ...sizes }) {
    const backend = await selectBackend({ device: 'native', precision, instructionSet, threads });
    subject = new HeadCase(backend.native, { ...sizes, precision: backend.precision });
    return { precision: backend.precision };
  },
  profile() {
    profile ??= new Profile(loadNativeAddon());
    return profile.take();
  },
  step: (batch) => subject.step(batch),
  attach: (adapter) => subject.attach(adapter),
  merge: () => subject.merge(),
  evaluate: (batch) => subject.evaluate(batch),
  save: (target) => subject.save(target),
};

console.log = console.error; // standard output is for answers alone
answer({ name: 'relora', version: process.versions.node });
for await (const line of createInterface({ input: process.stdin })) {
  const [[name, argument]] = Object.entries(JSON.parse(line));
  try {
    answer(await requests[name](argument));
  } catch (error) {
    answer({ error: error.message });
  }
}

function answer(value) {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
