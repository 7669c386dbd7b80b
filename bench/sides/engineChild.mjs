// Our engine as a child process with the protocol of pytorch.py: requests and answers are one JSON line each.
//
//     {"open": {"config": {…}, "rank": 128, "alpha": 128, "batch": 8, "time": 256, "precision": "bfloat16"}}
//     {"step": {}}       -> {"seconds": 1.23, "loss": 10.4, "peakBytes": 2.1e9}
//
// `profile` before `open` makes every native call be timed; after `open` it returns the statistics.
import { createInterface } from 'node:readline';
import { openDevice } from '../../engine/dist/index.js';
import { HeadCase } from './headCase.mjs';
import { Profile } from './profile.mjs';
import { Trainer } from './trainer.mjs';

/** Null until requested; then for the next device that is opened. */
let profile = null;
let isProfiled = false;
/** What `step` operates on: a Trainer or a HeadCase. */
let subject = null;

const requests = {
  async open({ precision, instructionSet, threads, ...model }) {
    const device = await open(precision, instructionSet, threads);
    subject = new Trainer(model, device);
    return { parameterCount: subject.parameterCount, precision: device.description.precision };
  },
  async openHead({ precision, instructionSet, threads, ...sizes }) {
    const { addon, description } = await open(precision, instructionSet, threads);
    subject = new HeadCase(addon, { ...sizes, precision: description.precision });
    return { precision: description.precision };
  },
  profile() {
    isProfiled = true;
    return profile?.take() ?? {};
  },
  step: (batch) => subject.step(batch),
  attach: (adapter) => subject.attach(adapter),
  merge: () => subject.merge(),
  evaluate: (batch) => subject.evaluate(batch),
  save: (target) => subject.save(target),
};

async function open(precision, instructionSet, threads) {
  const device = await openDevice({ device: 'native', precision, instructionSet, threads });
  profile = isProfiled ? new Profile(device.addon) : null;
  return device;
}

console.log = console.error; // standard output is only for answers
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
