/** The candidate with the smallest edit distance (Levenshtein), for "did you mean". */
export function nearest(word: string, candidates: readonly string[]): string {
  // The work grows with the length, and nobody mistypes a name into a long one.
  const typed = word.slice(0, 64);
  const distances = candidates.map((candidate) => ({ candidate, distance: editDistance(typed, candidate) }));
  return distances.reduce((best, entry) => (entry.distance < best.distance ? entry : best)).candidate;
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const substitution = previous[column - 1]! + (a[row - 1] === b[column - 1] ? 0 : 1);
      current.push(Math.min(substitution, previous[column]! + 1, current[column - 1]! + 1));
    }
    previous = current;
  }
  return previous[b.length]!;
}
