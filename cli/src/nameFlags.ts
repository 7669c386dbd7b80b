import type { Command } from 'commander';
import { UsageError } from './exitCodes.js';

/** Has what the flags of a command and of those below it refuse begin with the flag, whichever parser it was. */
export function nameFlags(command: Command): void {
  for (const option of command.options) {
    const parse = option.parseArg;
    if (parse === undefined) continue;
    option.parseArg = <T>(value: string, previous: T): T =>
      named(option.long ?? option.flags, () => parse(value, previous) as T);
  }
  command.commands.forEach(nameFlags);
}

/** What `parse` refuses, with the name of what was refused before it. */
export function named<T>(name: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    if (error instanceof UsageError && !error.message.startsWith(name))
      throw new UsageError(`${name}: ${error.message}`);
    throw error;
  }
}
