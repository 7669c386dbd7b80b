import { parseArgs } from 'node:util';
import { sectionsOfRow } from './kinds.mjs';

const declared = {
  only: { type: 'string' },
  full: { type: 'boolean', default: false },
  report: { type: 'boolean', default: false },
  set: { type: 'string', default: process.env.RELORA_INSTRUCTION_SET ?? 'auto' },
  threads: { type: 'string' },
  help: { type: 'boolean', default: false },
};

/**
 * Parses the arguments of `npm run bench -- …`; throws an error that says what to change.
 * @param {string[]} args
 * @param {{ name: string, title: string, isFull: boolean }[]} sections all of them, in their order
 * @param machine the native addon's description
 */
export function readOptions(args, sections, machine) {
  const { values } = parseArgs({ args, options: declared });
  if (values.report && (values.only !== undefined || values.full))
    throw new Error('--report: chooses the sections itself, expected it without --only and --full');
  const names = values.report ? sectionsOfRow : values.only?.split(',');
  const unknown = names?.filter((name) => !sections.some((section) => section.name === name)) ?? [];
  if (unknown.length > 0) throw new Error(`--only: expected some of ${namesOf(sections)}, got ${unknown}`);

  const instructionSet = values.set === 'auto' ? machine.instructionSets[0] : values.set;
  if (!machine.instructionSets.includes(instructionSet))
    throw new Error(`--set: expected one of ${machine.instructionSets.join(', ')}, got ${instructionSet}`);
  const threads = values.threads === undefined ? machine.threadsMax : Number(values.threads);
  if (!Number.isInteger(threads) || threads < 1)
    throw new Error(`--threads: expected a whole number from 1, got ${values.threads}`);

  return {
    help: values.help,
    sections: sections.filter(({ name, isFull }) => names?.includes(name) ?? (values.full || !isFull)),
    isPartial: names !== undefined && !values.report,
    isReported: values.report,
    instructionSet,
    threads,
  };
}

export function usage(sections) {
  const lines = sections.map(
    ({ name, title, isFull }) => `  ${name.padEnd(12)} ${title}${isFull ? ' (--full)' : ''}`,
  );
  return `npm run bench -- [options]

  --full              also what takes long
  --only NAME[,…]     these sections alone
  --report            what a row of the table of processors in docs/performance.md needs, and writes that row
  --set NAME          an instruction set of this CPU: ours and PyTorch are both held to it
                      (default: RELORA_INSTRUCTION_SET, else the best)
  --threads N         of both sides (default: all CPUs of this process)

PyTorch is python3 with torch, or what RELORA_BENCH_PYTHON names. Sections:

${lines.join('\n')}`;
}

function namesOf(sections) {
  return sections.map(({ name }) => name).join(', ');
}
