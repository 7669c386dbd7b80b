import type { Readable } from 'node:stream';

/** Longest line of a child's output; longer ones are cut. */
const lineLengthMax = 4096;

/** Reads a stream line by line. An endless line is cut, so that it does not fill the memory. */
export function eachLine(stream: Readable | null, write: (line: string) => void): void {
  let rest = '';
  stream?.setEncoding('utf8').on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    if (rest.length > lineLengthMax) {
      lines.push(rest);
      rest = '';
    }
    for (const line of lines) if (line.trim() !== '') write(line.slice(0, lineLengthMax));
  });
  stream?.on('end', () => {
    if (rest.trim() !== '') write(rest);
  });
}
