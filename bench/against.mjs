// Steps of this checkout beside those of another one, which was built: `node bench/against.mjs FOLDER [repeats]`. Both train llama-60m with the
// instruction set that is best here, step by step in turns, each by the graphs and kernels of its own version.
import { availableParallelism, cpus, loadavg } from 'node:os';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { loadNativeAddon } from '../engine/dist/index.js';
import { Session } from './session.mjs';
import { alternate } from './sides/alternate.mjs';
import { batchShape, kindOf } from './sides/sides.mjs';
import { table } from './table.mjs';

const [folder, repeats = '9'] = process.argv.slice(2);
if (folder === undefined) throw new Error('Expected the folder of another checkout that was built');
const addon = loadNativeAddon();
const [instructionSet] = addon.describe().instructionSets;
const threads = availableParallelism();
const shared = { instructionSet, threads, pytorch: {}, say() {} };
const here = new Session({ addon, ...shared });
const { Session: OtherSession } = await import(pathToFileURL(join(resolve(folder), 'bench/session.mjs')));
// It needs the addon only to describe this machine.
const other = new OtherSession({ addon, ...shared });

const rows = [];
for (const [rank, precision] of [
  [0, 'float32'],
  [128, 'float32'],
  [0, 'bfloat16'],
  [128, 'bfloat16'],
  [64, 'int8Base'],
  [128, 'nf4Base'],
]) {
  const side = { engine: 'relora', preset: 'llama-60m', rank, precision, ...batchShape };
  const children = [await other.open(side), await here.open(side)];
  const [before, now] = await alternate(children, { warmUps: 2, repeats: Number(repeats) });
  await Promise.all(children.map((child) => child.close()));
  const ms = ({ secondsBest }) => (1000 * secondsBest).toFixed(0);
  rows.push([
    `${kindOf(side)}, ${precision}`,
    ms(before),
    ms(now),
    (before.secondsBest / now.secondsBest).toFixed(3),
    (before.secondsMedian / now.secondsMedian).toFixed(3),
  ]);
}
console.log(`${cpus()[0]?.model ?? ''}, ${instructionSet}, ${threads} threads, load ${loadavg()[0].toFixed(0)}, Node ${process.versions.node}.

${table(['llama-60m, 2,048 tokens', 'the other, best ms', 'this one', 'the other over this, best', 'median'], rows)}`);
