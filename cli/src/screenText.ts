/** Text that cannot steer a terminal: control characters, which titles, samples and messages may hold, become spaces. */
export function printable(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f]+/g, ' ');
}

/** The beginning of a line that fits so many columns; colours are kept and ended, wide characters count as two. */
export function fit(line: string, columns: number): string {
  let used = 0;
  let shown = '';
  for (const [piece] of line.matchAll(/\u001b\[[\d;]*m|[^]/gu)) {
    if (piece.length > 1 && piece.startsWith('\u001b')) shown += piece;
    else if (used + columnsOf(piece) <= columns) {
      used += columnsOf(piece);
      shown += piece;
    } else used = columns; // nothing after the first that does not fit, but its colours
  }
  return shown;
}

/** Columns that a character takes: 0 for combining marks, 2 for East Asian wide ones and emoji. */
function columnsOf(character: string): number {
  if (/\p{Mark}|\u200d/u.test(character)) return 0;
  const isWide =
    /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]/u;
  return isWide.test(character) || /\p{Emoji_Presentation}|[\u{20000}-\u{3fffd}]/u.test(character) ? 2 : 1;
}
