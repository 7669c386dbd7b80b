import { execFile } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { kernelVariants } from '../../engine/dist/device/cuda/index.js';
import { cardOptions } from './card.mjs';

const child = fileURLToPath(new URL('compilePart.mjs', import.meta.url));

/**
 * Compiles the kernels for the card into the cache, several at a time: each takes about a second, and a process compiles one after another.
 * @param {Record<string, any>} context of a section
 * @param {readonly number[]} headDims head sizes that attention is compiled for
 * @returns a row of the report
 */
export async function compileKernels(context, headDims) {
  const device = context.open('bfloat16');
  const { instructionSet, libraries } = device.description;
  device.close();
  // The model's compiler takes seconds for each kernel, and later sections need few of them.
  const variants = kernelVariants().filter(({ file, definitions }) =>
    context.isModel
      ? file === 'product'
      : file !== 'attention' || headDims.some((dim) => definitions.includes(`HEAD_DIM=${dim}`)),
  );
  const workers = Math.max(1, Math.min(8, availableParallelism(), variants.length));
  const parts = Array.from({ length: workers }, (_, part) => variants.filter((_, i) => i % workers === part));
  const begin = performance.now();
  const options = cardOptions(context);
  await Promise.all(
    parts.map((part) =>
      promisify(execFile)(process.execPath, [
        child,
        JSON.stringify({ options, architecture: instructionSet, nvrtc: libraries.nvrtc, variants: part }),
      ]),
    ),
  );
  const seconds = ((performance.now() - begin) / 1e3).toFixed(1);
  return {
    what: 'kernels compile',
    outcome: 'ok',
    figures: `${variants.length} modules by ${workers} processes in ${seconds} s`,
  };
}
