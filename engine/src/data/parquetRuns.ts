/**
 * Throws unless every run of a page's levels and dictionary indices has at most as many values as the page (rounded up to eight, as they
 * are packed). The reader repeats a value as often as a run claims, whatever the page contains, until memory runs out.
 * @param page unpacked; in version 2 only the levels or only the values
 */
export function checkRuns(page: Uint8Array, start: number, bitWidth: number, values: number): void {
  let at = start;
  let seen = 0;
  while (seen < values && at < page.length) {
    let header = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = page[at++];
      if (byte === undefined || shift > 28) throw new Error('a run of values has no length');
      header += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) break;
    }
    const isPacked = header % 2 === 1;
    const count = Math.floor(header / 2) * (isPacked ? 8 : 1);
    if (count > values + 7) throw new Error(`a run has ${count} values, its page ${values}`);
    // An empty run at the end of the bytes would be read again and again.
    at += isPacked ? (count * bitWidth) / 8 : Math.ceil(bitWidth / 8);
    seen += count;
  }
}
