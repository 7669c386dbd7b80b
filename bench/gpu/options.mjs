import { parseArgs } from 'node:util';

const declared = {
  only: { type: 'string' },
  report: { type: 'string' },
  seconds: { type: 'string' },
  card: { type: 'string', default: '0' },
  libraries: { type: 'string' },
  python: { type: 'string', default: process.env.RELORA_BENCH_PYTHON ?? 'python3' },
  presets: { type: 'string' },
  model: { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
};

/** Parses the command line; throws an error that says what to change. `sections`: [{ name, title }]. */
export function readOptions(args, sections, { report, seconds }) {
  const { values } = parseArgs({ args, options: declared });
  const names = values.only?.split(',');
  const known = sections.map(({ name }) => name);
  const unknown = names?.filter((name) => !known.includes(name)) ?? [];
  if (unknown.length > 0) throw new Error(`--only: expected some of ${known.join(', ')}, got ${unknown}`);
  return {
    isHelp: values.help,
    isModel: values.model,
    sections: sections.filter(({ name }) => names?.includes(name) ?? true),
    report: values.report ?? report,
    seconds: number('seconds', values.seconds ?? String(seconds)),
    ordinal: number('card', values.card),
    libraryFolder: values.libraries ?? null,
    python: values.python,
    presets: values.presets?.split(',') ?? null,
  };
}

export function usage(command, sections) {
  return `${command} [options]

  --only NAME[,…]    these sections alone
  --report FILE      where the report is written, row by row
  --seconds N        no row begins after so long, and what is not done 8 s later is cut off
  --card N           among the cards that the driver shows (default 0)
  --libraries FOLDER where NVRTC and cuBLASLt are (default: wherever they are found)
  --presets NAME[,…] measure these alone (bench)
  --python COMMAND   a Python with torch (bench; default RELORA_BENCH_PYTHON, else python3)
  --model            on the model of a card, which needs g++ and no card: tiny sizes, slow

Sections:
${sections.map(({ name, title }) => `  ${name.padEnd(14)} ${title}`).join('\n')}`;
}

function number(name, text) {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0)
    throw new Error(`--${name}: expected a whole number, got ${text}`);
  return value;
}
