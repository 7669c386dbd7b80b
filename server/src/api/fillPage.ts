import type { DeepPartial, MessageFns } from '@relora/sdk/contract';
import { Turns } from './turns.js';

/** Rows that are read before others get their turn: each may need several statements, which SQLite runs synchronously. */
const sliceMax = 10;

/** Size of an answer without its items: the token of the next page, up to its maximum length, and a few bytes. */
const besideBytes = 4096 + 64;
/** Bytes that an item takes in addition to its own: its field number and its length. */
const itemBytes = 8;

export interface PageSource<Item, Cursor, Message> {
  /** The place after which the page begins; null at the beginning of the list. */
  after: Cursor | null;
  itemsMax: number;
  /** The page ends early before it would have more. */
  bytesMax: number;
  /** Items after a place; `next` is null at the end of the list. */
  read(after: Cursor | null, itemsMax: number): Promise<{ items: readonly Item[]; next: Cursor | null }>;
  placeOf(item: Item): Cursor;
  type: MessageFns<Message>;
  toMessage(item: Item): DeepPartial<Message>;
}

/**
 * One page of a list: as many items as requested, if they fit into an answer, but at least one. It is read in slices, between which other
 * calls get their turn.
 */
export async function fillPage<Item, Cursor, Message>({
  after,
  itemsMax,
  bytesMax,
  read,
  placeOf,
  type,
  toMessage,
}: PageSource<Item, Cursor, Message>): Promise<{ messages: DeepPartial<Message>[]; next: Cursor | null }> {
  const messages: DeepPartial<Message>[] = [];
  const turns = new Turns();
  let bytes = besideBytes;
  for (let place = after; ;) {
    const slice = await read(place, Math.min(sliceMax, itemsMax - messages.length));
    for (const item of slice.items) {
      const message = toMessage(item);
      bytes += itemBytes + type.encode(type.fromPartial(message)).finish().length;
      if (messages.length > 0 && bytes > bytesMax) return { messages, next: place };
      messages.push(message);
      place = placeOf(item);
      await turns.next();
    }
    if (slice.next === null || messages.length >= itemsMax) return { messages, next: slice.next };
    await turns.next();
  }
}
