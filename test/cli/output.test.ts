import { Command } from 'commander';
import { afterEach, expect, it, onTestFinished, vi } from 'vitest';
import { parse } from 'yaml';
import { addDataCommands } from '../../cli/dist/dataCommands.js';
import { formats, Output } from '../../cli/dist/output.js';
import { brokenServer } from '../sdk/brokenServer.js';

afterEach(() => void vi.restoreAllMocks());

/** Characters that control a terminal, or reverse the order of the following text. */
const steering = ['\u001b[2J', '\u001b]0;title\u0007', '\u009b31m', '\u007f', '\r', '\u202e', '\u2066'];
const obeyed = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/;

/** What is written to the terminal from now on. */
function writtenText(): { text: string } {
  const written = { text: '' };
  const take = (text: unknown): boolean => {
    written.text += String(text);
    return true;
  };
  vi.spyOn(process.stdout, 'write').mockImplementation(take);
  vi.spyOn(process.stderr, 'write').mockImplementation(take);
  return written;
}

it('a preview dims on a terminal what is not learned', async () => {
  const tokens = [
    { text: 'Ask\u001b', trained: false },
    { text: 'Answer', trained: true },
  ];
  const client = await brokenServer({ previewDataset: async () => ({ tokens }) });
  const { isTTY } = process.stdout;
  onTestFinished(() => void (process.stdout.isTTY = isTTY));
  process.stdout.isTTY = true;
  const written = writtenText();
  const program = new Command();
  const { signal } = new AbortController();
  addDataCommands(program, async (body) => await body({ client, output: new Output('table'), signal }));
  await program.parseAsync(['node', 'relora', 'preview', 'tales']);
  expect(written.text).toBe('\u001b[2mAsk \u001b[22mAnswer\n');
});

it.each(formats)('no text of others steers a terminal: %s', (format) => {
  const written = writtenText();
  const value = { titles: steering.map((text) => `a${text}b`), [`key${steering.join('')}`]: 'two\nlines' };
  const output = new Output(format);
  output.result(value, () => value.titles);
  const result = written.text;
  output.note(`Upload of ${steering.join('')}`);
  output.error(new Error(`No ${steering.join('')}`));
  expect(written.text).not.toMatch(obeyed);
  if (format === 'table') expect(written.text).not.toMatch(/[\u202a-\u202e\u2066-\u2069]/);
  else expect(format === 'json' ? JSON.parse(result) : parse(result)).toEqual(value);
});
