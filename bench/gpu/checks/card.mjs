import { execFile } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { kernelVariants } from '../../../engine/dist/device/cuda/index.js';
import { cardOptions } from '../card.mjs';

export const name = 'card';
export const title = 'Card, libraries, kernels compiled for it';

/** Head sizes used by later sections. */
const headDims = [8, 16, 64];

export async function* run(context) {
  const device = context.open('bfloat16');
  const { model, instructionSet, libraries } = device.description;
  const { totalBytes, freeBytes } = device.card.memory();
  device.close();
  const named = Object.entries(libraries).map(([name, value]) => `${name} ${value}`);
  const memory = `${(totalBytes / 2 ** 30).toFixed(1)} GiB, ${(freeBytes / 2 ** 30).toFixed(1)} free`;
  yield { what: model, outcome: 'ok', figures: [instructionSet, memory, ...named].join(', ') };
  if (context.isModel) return;

  // Each takes about a second, and a process compiles one at a time.
  const variants = kernelVariants().filter(
    ({ file, definitions }) =>
      file !== 'attention' || headDims.some((dim) => definitions.includes(`HEAD_DIM=${dim}`)),
  );
  const workers = Math.max(1, Math.min(8, availableParallelism(), variants.length));
  const parts = Array.from({ length: workers }, (_, part) => variants.filter((_, i) => i % workers === part));
  const begin = performance.now();
  const options = cardOptions(context);
  await Promise.all(
    parts.map((part) =>
      promisify(execFile)(process.execPath, [
        fileURLToPath(new URL('../compilePart.mjs', import.meta.url)),
        JSON.stringify({ options, architecture: instructionSet, nvrtc: libraries.nvrtc, variants: part }),
      ]),
    ),
  );
  const seconds = ((performance.now() - begin) / 1e3).toFixed(1);
  yield {
    what: 'kernels compile',
    outcome: 'ok',
    figures: `${variants.length} modules by ${workers} processes in ${seconds} s`,
  };
}
