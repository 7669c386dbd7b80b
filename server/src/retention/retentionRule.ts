/** What is kept of something; 0 means no limit. */
export interface RetentionRule {
  /** Older ones are removed. */
  days: number;
  /** Number of the newest that are kept. */
  count: number;
  /** The newest are kept as long as their total size is within this. */
  bytes: number;
}

export interface Keepable {
  timeMs: number;
  bytes: number;
}

const dayMs = 86_400_000;

/** What a rule removes; the newest `spared` are always kept. */
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
      // The first that does not fit and all older ones are removed: a small old one does not outlive a large new one.
      isFull ||= rule.bytes > 0 && keptBytes > rule.bytes;
      const isOld = rule.days > 0 && item.timeMs < nowMs - rule.days * dayMs;
      const isBeyond = rule.count > 0 && index >= rule.count;
      return index >= spared && (isOld || isBeyond || isFull);
    });
}
