import type { Command } from 'commander';
import { UsageError } from './exitCodes.js';

/** Makes the errors of flags, of a command and its subcommands, begin with the name of the flag, whichever parser found them. */
export function nameFlags(command: Command): void {
  for (const option of command.options) {
    const parse = option.parseArg;
    if (parse === undefined) continue;
    option.parseArg = <T>(value: string, previous: T): T =>
      named(option.long ?? option.flags, () => parse(value, previous) as T);
  }
  command.commands.forEach(nameFlags);
}

/** Prefixes errors of `parse` with a name. */
export function named<T>(name: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof UsageError && !error.message.startsWith(name))
      throw new UsageError(`${name}: ${error.message}`);
    throw error;
  }
}
