import { InvalidArgumentError } from 'commander';
import type { ReloraClient } from '@relora/sdk';
import type { Output } from './output.js';

/** What every command uses. */
export interface Session {
  client: ReloraClient;
  output: Output;
  /** Aborted by Ctrl-C. */
  signal: AbortSignal;
}

/** Runs the body of a command with a connection, and ends the process with the right exit code. */
export type Run = (body: (session: Session) => Promise<void>) => Promise<void>;

/** Flags of every command. */
export interface GlobalFlags {
  address?: string;
  profile?: string;
  tenant?: string;
  /** Seconds. */
  timeout?: number;
}

/** The deadline of the client; without the flag, each call has its own default. */
export function deadlineOf({ timeout }: GlobalFlags): { deadlineMs?: number } {
  return timeout === undefined ? {} : { deadlineMs: timeout * 1000 };
}

/** Runs the body of a command that opens its own connection, or none, and ends the process with the right exit code. */
export type RunAlone = (body: (output: Output, flags: GlobalFlags) => Promise<void>) => Promise<void>;

export function jobName(name: string): string {
  return name.startsWith('jobs/') ? name : `jobs/${name}`;
}

export function label(value: string, previous: Record<string, string> = {}): Record<string, string> {
  const separator = value.indexOf('=');
  if (separator <= 0) throw new InvalidArgumentError('Labels are key=value.');
  return { ...previous, [value.slice(0, separator)]: value.slice(separator + 1) };
}
