import { execFileSync } from 'node:child_process';
import { totalmem } from 'node:os';
import { openDevice } from '../engine/dist/index.js';
import { table } from './table.mjs';

export const name = 'machine';
export const title = 'The machine and its measured peaks';
export const isFull = false;

const precisions = ['float32', 'bfloat16', 'int8'];

export async function run({ addon, instructionSet, threads, pytorch, pytorchLimit }) {
  const { cpuModel, instructionSets } = addon.describe();
  addon.configure({ instructionSet, threads });
  const device = await openDevice({ device: 'native', precision: 'auto', instructionSet, threads });
  return {
    cpuModel,
    instructionSet,
    instructionSets,
    threads,
    memoryBytes: totalmem(),
    commit: execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8' }).trim(),
    pytorch,
    pytorchLimit,
    peaks: Object.fromEntries(precisions.map((precision) => [precision, peakGflops(addon, precision)])),
    device: await device.measure(),
  };
}

/** Best of several short windows: other load on the machine would spoil a single long one. Null if the addon refuses the precision. */
function peakGflops(addon, precision) {
  try {
    return Math.max(...Array.from({ length: 12 }, () => addon.measurePeak(precision, 30)));
  } catch {
    return null;
  }
}

/** Precision of products for a run's `precision` setting. */
export function productPrecision(precision) {
  return precision === 'int8Base' ? 'int8' : precision === 'nf4Base' ? 'bfloat16' : precision;
}

export function report({ cpuModel, instructionSets, instructionSet, threads, memoryBytes, ...rest }) {
  const { commit, pytorch, pytorchLimit, peaks } = rest;
  const limits = Object.entries(pytorchLimit).map(([variable, value]) => `${variable}=${value}`);
  return `${cpuModel}, ${threads} threads, ${(memoryBytes / 2 ** 30).toFixed(0)} GiB. It offers ${instructionSets.join(', ')};
this run uses **${instructionSet}**${limits.length > 0 ? `, and PyTorch is held to it by ${limits.join(' ')}` : ''}.
Commit ${commit}, Node ${process.versions.node}, ${pytorch.command === null ? `no PyTorch (${pytorch.reason})` : `PyTorch ${pytorch.version}`}.

${table(
  ['arithmetic', 'peak, GFLOP/s'],
  Object.entries(peaks).map(([precision, peak]) => [
    precision,
    peak === null ? 'not available' : peak.toFixed(0),
  ]),
)}

A peak is what a loop of the product's own instruction over operands in the first-level cache reaches on all threads.`;
}
