import * as estimates from './estimates.mjs';
import * as exactness from './exactness.mjs';
import * as head from './head.mjs';
import * as kernels from './kernels.mjs';
import * as llama1b from './llama1b.mjs';
import * as llama350m from './llama350m.mjs';
import * as lossBand from './lossBand.mjs';
import * as machine from './machine.mjs';
import * as modes from './modes.mjs';
import * as products from './products.mjs';
import * as steps from './steps.mjs';
import * as threads from './threads.mjs';
import * as timeToLoss from './timeToLoss.mjs';

/**
 * In the order of measurement and report. Each has `name`, `title`, `isFull` (runs only on request), `run(session)` which returns plain
 * data, `report(data)` which returns Markdown, and optionally `plots(data)`.
 */
export const sections = [
  machine,
  exactness,
  modes,
  steps,
  kernels,
  head,
  threads,
  products,
  estimates,
  llama350m,
  llama1b,
  lossBand,
  timeToLoss,
];
