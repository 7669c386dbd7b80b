import type { Device, DirectSums } from './device.js';
import type { Exchange } from './exchange.js';

/** What a member offers, as text of this length. */
const offerBytes = 128;

/**
 * Connects the devices of all members, if each has a device of its own and all have the same library for sums over them; otherwise null, in
 * all of them. Throws MemberLost.
 */
export async function connectDevices(
  device: Pick<Device, 'description' | 'directSums'>,
  exchange: Exchange,
): Promise<DirectSums | null> {
  const { rank, size } = exchange;
  const direct = device.directSums?.() ?? null;
  const offer = direct === null ? '' : `${direct.library}, ${device.description.uuid ?? ''}`;
  const all = await exchange.gather(new Uint8Array(Buffer.alloc(offerBytes, offer.padEnd(offerBytes))));
  const offers = Array.from({ length: size }, (_, index) =>
    Buffer.from(all.subarray(index * offerBytes, (index + 1) * offerBytes))
      .toString()
      .trim()
      .split(', '),
  );
  const areAlike = offers.every(([library]) => library !== '' && library === offers[0]![0]);
  if (direct === null || !areAlike || new Set(offers.map(([, uuid]) => uuid)).size < size) return null;
  const { idBytes } = direct;
  const ids = await exchange.gather(rank === 0 ? await direct.newId() : new Uint8Array(idBytes));
  await direct.join(ids.subarray(0, idBytes), rank, size);
  return direct;
}
