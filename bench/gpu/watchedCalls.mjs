// A few small calls of each kind, to be run under compute-sanitizer: `node watchedCalls.mjs JSON`, see checks/sanitizer.mjs.
import { Bench, casesOf, updateCases } from '../../engine/dist/conformance/index.js';
import { cardOptions, openCard } from './card.mjs';

const names = [
  'embedding larger',
  'rmsNorm larger',
  'attentionHalf merged larger',
  'attentionHalf separate larger',
  'attentionHalf dropout of version 2, biased larger',
  'mlpHalf merged larger',
  'mlpHalf trained larger',
  'headCrossEntropy larger',
  'adamW with moments in float32',
  'adamW with moments in eight bits',
  'sums and squares of an allocation in parts',
  'mergeAdapter beside the weight and into it',
];
const device = openCard(cardOptions(JSON.parse(process.argv[2])), 'bfloat16');
for (const one of [...casesOf('larger'), ...updateCases])
  if (names.includes(one.name)) await one.run(new Bench(device));
device.close();
