import type { Card } from './cudaAddon.js';

/** Enough launches for one call of the addon to pay off, few enough that the card does not run out of work meanwhile. */
const listBytes = 2 ** 13;

/** Calls that neither queue work nor wait. */
const unordered: ReadonlySet<string> = new Set([
  ...['allocate', 'allocateHost', 'loadModule', 'loadKernel', 'kernelAttributes', 'planProduct', 'leaveRing'],
]);

/**
 * A card that collects launches into lists: consecutive launches are one call of the addon. Every other call that queues work or waits
 * first submits the collected launches, so the order is preserved.
 */
export function batched(card: Card): Card {
  const list = new Uint8Array(listBytes);
  let used = 0;
  const flush = () => {
    if (used === 0) return;
    const commands = list.subarray(0, used);
    used = 0;
    card.run(commands);
  };
  const run = (commands: Uint8Array) => {
    if (used + commands.length > listBytes) flush();
    if (commands.length > listBytes) return card.run(commands);
    list.set(commands, used);
    used += commands.length;
  };
  const entries = Object.entries(card).map(([name, call]: [string, unknown]) => {
    if (typeof call !== 'function' || unordered.has(name)) return [name, call];
    const ordered = (...values: unknown[]): unknown => {
      if (name !== 'close') flush(); // on a lost card nothing can run any more
      return (call as (...values: unknown[]) => unknown)(...values);
    };
    return [name, ordered];
  });
  return { ...(Object.fromEntries(entries) as Card), run };
}
