/**
 * Text that cannot control a terminal: control characters, which titles, samples and messages may contain, become spaces, as do those that
 * change the direction of text.
 */
export function printable(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]+/g, ' ');
}

/**
 * The beginning of a line that fits into a number of columns, with `…` if something is left out; colors are kept and ended, and wide
 * characters count as two.
 */
export function fit(line: string, columns: number): string {
  const pieces = [...line.matchAll(/\u001b\[[\d;]*m|[^]/gu)].map(([piece]) => piece);
  const isColor = (piece: string) => piece.length > 1 && piece.startsWith('\u001b');
  const total = pieces.reduce((sum, piece) => sum + (isColor(piece) ? 0 : columnsOf(piece)), 0);
  const room = total <= columns ? columns : columns - 1;
  let used = 0;
  let shown = '';
  let isCut = false;
  for (const piece of pieces) {
    if (isColor(piece)) shown += piece;
    else if (isCut)
      continue; // after the first that does not fit, only color codes are kept
    else if (used + columnsOf(piece) <= room) {
      used += columnsOf(piece);
      shown += piece;
    } else {
      isCut = true;
      if (columns > 0) shown += '…';
    }
  }
  return shown;
}

/** A text broken between words into lines of a number of columns; the last of `linesMax` ends with `…` if there is more. */
export function wrap(text: string, columns: number, linesMax: number): string[] {
  const lines: string[] = [];
  let line = '';
  // A word longer than a line is broken, as is text in scripts without spaces.
  const words = text.match(new RegExp(`\\S{1,${Math.max(1, columns)}}`, 'gu')) ?? [];
  for (const word of words) {
    if (line !== '' && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = '';
    }
    line += line === '' ? word : ` ${word}`;
  }
  if (line !== '') lines.push(line);
  if (lines.length <= linesMax) return lines;
  const kept = lines.slice(0, linesMax);
  return [...kept.slice(0, -1), fit(`${kept.at(-1)} ${lines[linesMax]}`, columns - 1).replace(/…?$/, '…')];
}

/** Columns that a character takes: 0 for combining marks, 2 for wide East Asian ones and emoji. */
function columnsOf(character: string): number {
  if (/\p{Mark}|\u200d/u.test(character)) return 0;
  const isWide =
    /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]/u;
  return isWide.test(character) || /\p{Emoji_Presentation}|[\u{20000}-\u{3fffd}]/u.test(character) ? 2 : 1;
}

/** Printable text that keeps its line breaks. */
export function printableLines(text: string): string {
  return text.split('\n').map(printable).join('\n');
}
