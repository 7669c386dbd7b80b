/** What is kept of something; 0 is no limit. */
export interface RetentionRule {
  /** Older ones go. */
  days: number;
  /** Only so many of the newest stay. */
  count: number;
  /** The newest stay that have together at most so many bytes. */
  bytes: number;
}

export interface Keepable {
  timeMs: number;
  bytes: number;
}

const dayMs = 86_400_000;

/** What a rule throws away; the newest `spared` stay whatever it says. */
export function surplusOf<Item extends Keepable>(
  items: readonly Item[],
  rule: RetentionRule,
  nowMs: number,
  spared = 0,
): Item[] {
  let keptBytes = 0;
  let isFull = false;
  return [...items]
    .sort((a, b) => b.timeMs - a.timeMs)
    .filter((item, index) => {
      keptBytes += item.bytes;
      // From the first that does not fit on all go: a small old one does not outlive a large new one.
      isFull ||= rule.bytes > 0 && keptBytes > rule.bytes;
      const isOld = rule.days > 0 && item.timeMs < nowMs - rule.days * dayMs;
      const isBeyond = rule.count > 0 && index >= rule.count;
      return index >= spared && (isOld || isBeyond || isFull);
    });
}
