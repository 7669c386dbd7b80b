import type { Card } from './cudaAddon.js';

/** Enough launches to be worth a call of the addon, few enough that the card does not wait for them. */
const listBytes = 2 ** 13;

/** Calls that neither queue work nor wait. */
const unordered: ReadonlySet<string> = new Set([
  ...['allocate', 'allocateHost', 'loadModule', 'loadKernel', 'kernelAttributes', 'planProduct'],
]);

/**
 * A card whose launches are handed over as lists: those that follow one another are one call of the addon. Any other call that queues or
 * waits first hands over the launches before it, so the order stays the same.
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
      if (name !== 'close') flush(); // of a card that is lost nothing runs any more
      return (call as (...values: unknown[]) => unknown)(...values);
    };
    return [name, ordered];
  });
  return { ...(Object.fromEntries(entries) as Card), run };
}
