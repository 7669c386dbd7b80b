import { setTimeout } from 'node:timers/promises';
import { findManagement, loadCudaAddon } from '@relora/engine/cuda';
import type { WatchCardsTask } from '../messages.js';
import type { ServerChannel } from './channel.js';

/** Reads the cards' sensors again and again until it is ended; fails if the library is not installed. */
export async function watchCards(
  { device: { card }, intervalMs }: WatchCardsTask,
  channel: ServerChannel,
): Promise<never> {
  const addon = loadCudaAddon();
  for (;;) {
    const value = addon.readCards(findManagement(card.libraryFolder));
    await channel.answer<'watchCards'>({ type: 'part', value });
    await setTimeout(intervalMs);
  }
}
