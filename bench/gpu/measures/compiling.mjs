import { availableParallelism } from 'node:os';
import { performance } from 'node:perf_hooks';
import { compileKernels } from '../compileKernels.mjs';
import { patienceOf, widthsOf } from '../peers.mjs';
import { sidesOf } from '../sides.mjs';

export const name = 'compiling';
export const title =
  'Our kernels and what PyTorch compiles, several at a time: later sections find it in the caches';
export const seconds = 60;

/** Processes of PyTorch at a time: for a block, the head and the logits of llama-1b each takes about 10 GB of the card, counted from shapes. */
const processesMax = 5;

export async function* run(context) {
  yield await compileKernels(context, [64]);
  if (!context.peer.isThere) return;
  const steps = sidesOf(context, 128).flatMap((side) =>
    widthsOf(side, { kind: 'merged' }).map((variant) => ({ side, variant })),
  );
  const full = sidesOf(context, 0).map((side) => ({ side, variant: { kind: 'full' } }));
  const waiting = [...steps, ...full];
  const total = waiting.length;
  const begin = performance.now();
  const failures = [];
  const work = async () => {
    for (let one = waiting.shift(); one !== undefined; one = waiting.shift()) {
      const peer = context.peer.another();
      const { side, variant } = one;
      // All blocks run the same code, so that one is enough.
      const first = { ...side, config: { ...side.config, numHiddenLayers: 1 } };
      const patience = patienceOf(context);
      try {
        if (patience <= 0) throw new Error('the time is over');
        await peer.open(context.text, first, variant, patience);
      } catch (error) {
        failures.push(`${side.preset}: ${error.message}`);
      }
      await peer.close();
    }
  };
  const workers = Math.min(processesMax, Math.max(1, availableParallelism() >> 1));
  await Promise.all(Array.from({ length: workers }, work));
  yield {
    what: 'PyTorch compiles',
    outcome: failures.length === 0 ? 'ok' : 'not measured',
    figures: `${total - failures.length} of ${total} by ${workers} processes in ${((performance.now() - begin) / 1e3).toFixed(1)} s${failures.map((each) => `; ${each}`).join('')}`,
  };
}
