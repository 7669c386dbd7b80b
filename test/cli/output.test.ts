import { afterEach, expect, it, vi } from 'vitest';
import { parse } from 'yaml';
import { formats, Output } from '../../cli/dist/output.js';

afterEach(() => void vi.restoreAllMocks());

/** Characters that control a terminal, or reverse the order of the following text. */
const steering = ['\u001b[2J', '\u001b]0;title\u0007', '\u009b31m', '\u007f', '\r', '\u202e', '\u2066'];
const obeyed = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/;

it.each(formats)('no text of others steers a terminal: %s', (format) => {
  let written = '';
  const take = (text: unknown): boolean => {
    written += String(text);
    return true;
  };
  vi.spyOn(process.stdout, 'write').mockImplementation(take);
  vi.spyOn(process.stderr, 'write').mockImplementation(take);
  const value = { titles: steering.map((text) => `a${text}b`), [`key${steering.join('')}`]: 'two\nlines' };
  const output = new Output(format);
  output.result(value, () => value.titles);
  const result = written;
  output.note(`Upload of ${steering.join('')}`);
  output.error(new Error(`No ${steering.join('')}`));
  expect(written).not.toMatch(obeyed);
  if (format === 'table') expect(written).not.toMatch(/[\u202a-\u202e\u2066-\u2069]/);
  else expect(format === 'json' ? JSON.parse(result) : parse(result)).toEqual(value);
});
