const patternLengthMax = 4096;

/**
 * Whether a pattern has no unbounded repeat inside of a repeated group: such a pattern can take exponential time, and no tokenizer in use
 * needs one. This is not a full parser: anything it does not understand counts as harmful.
 */
export function isLinear(pattern: string): boolean {
  if (pattern.length > patternLengthMax) return false;
  /** For each open group, whether it contains an unbounded repeat. */
  const open = [false];
  let closedHolds = false;
  for (let i = 0; i < pattern.length; i++) {
    const character = pattern[i]!;
    let justClosed = false;
    if (character === '\\') i++;
    else if (character === '[') {
      i = endOfClass(pattern, i);
      if (i < 0) return false;
    } else if (character === '(') {
      open.push(false);
      continue;
    } else if (character === ')') {
      if (open.length === 1) return false;
      closedHolds = open.pop()!;
      if (closedHolds) open[open.length - 1] = true;
      justClosed = true;
    } else if (!isRepeat(pattern, i)) continue;
    else {
      open[open.length - 1] = true;
      continue;
    }
    if (isRepeat(pattern, i + 1) && justClosed && closedHolds) return false;
  }
  return open.length === 1;
}

/** `*`, `+` and `{n,}` are unbounded repeats; large bounds count as well. */
function isRepeat(pattern: string, at: number): boolean {
  if (pattern[at] === '*' || pattern[at] === '+') return true;
  const bounds = /^\{(\d*)(,?)(\d*)\}/.exec(pattern.slice(at, at + 24));
  if (bounds === null) return false;
  const most = bounds[2] === '' ? bounds[1] : bounds[3];
  return most === '' || Number(most) > 8;
}

/** Index of the bracket that ends a class, which may hold classes; -1 when there is none. */
function endOfClass(pattern: string, start: number): number {
  let depth = 0;
  for (let i = start; i < pattern.length; i++) {
    if (pattern[i] === '\\') i++;
    else if (pattern[i] === '[') depth++;
    else if (pattern[i] === ']' && --depth === 0) return i;
  }
  return -1;
}
