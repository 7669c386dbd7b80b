// Source files of the addon for NVIDIA cards.
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { baseFlags, listFiles } from '../compileLibrary.mjs';

export const root = dirname(fileURLToPath(import.meta.url));

/** The units of `compileLibrary`: `host` is the addon, `model` the model of a card. */
export function cudaUnits(part, flags) {
  return listFiles(join(root, part), '.cpp').map((file) => ({
    source: `${part}/${file}`,
    name: file.replaceAll('/', '.').replace(/\.cpp$/, ''),
    flags: [...baseFlags, ...flags],
  }));
}
