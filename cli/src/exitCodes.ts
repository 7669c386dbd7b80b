import { CommanderError } from 'commander';
import { DatasetFailedError, JobFailedError, ReloraError } from '@relora/sdk';

/** What the process ends with; promised to scripts, see `relora --help`. */
export const exitCodes = {
  ok: 0,
  jobFailed: 1,
  usage: 2,
  refused: 3,
  unreachable: 4,
  internal: 5,
  different: 6,
  interrupted: 130,
} as const;

/** A replay gave another result than the first run. */
export class ReplayDiffers extends Error {
  override name = 'ReplayDiffers';
}

/** A mistake on the command line or in a file that it names. */
export class UsageError extends Error {
  override name = 'UsageError';
}

export function exitCodeOf(error: unknown): number {
  if (error instanceof JobFailedError || error instanceof DatasetFailedError) return exitCodes.jobFailed;
  if (error instanceof ReplayDiffers) return exitCodes.different;
  if (error instanceof UsageError || error instanceof CommanderError) return exitCodes.usage;
  if (error instanceof DOMException && error.name === 'AbortError') return exitCodes.interrupted;
  if (isPathMistake(error)) return exitCodes.usage;
  if (!(error instanceof ReloraError)) return exitCodes.internal;
  switch (error.code) {
    case 'UNAVAILABLE':
    case 'DEADLINE_EXCEEDED':
      return exitCodes.unreachable;
    case 'INTERNAL':
    case 'UNKNOWN':
    case 'DATA_LOSS':
    case 'UNIMPLEMENTED':
      return exitCodes.internal;
    default:
      return exitCodes.refused;
  }
}

/** A file or folder that was named cannot be used. */
function isPathMistake(error: unknown): boolean {
  const { code = '' } = error as NodeJS.ErrnoException;
  return (
    error instanceof Error && ['ENOENT', 'EACCES', 'EPERM', 'EISDIR', 'ENOTDIR', 'EEXIST'].includes(code)
  );
}

/** An error for people: what is wrong, each bad field on its own line, what to do. */
export function describeError(error: unknown, address: string): string[] {
  if (!(error instanceof ReloraError)) return [error instanceof Error ? error.message : String(error)];
  if (error.code === 'UNAVAILABLE' && error.reason === '') {
    return [
      `No server answers at ${address}.`,
      'Start one with "relora-server", or name another with --address or RELORA_ADDRESS.',
    ];
  }
  if (error.fields.length === 0) return [error.message];
  const width = Math.max(...error.fields.map(({ field }) => field.length));
  return [
    'The request was refused:',
    ...error.fields.map(({ field, description }) => `  ${field.padEnd(width)}  ${description}`),
  ];
}

/** An error for programs. */
export function errorJson(error: unknown): object {
  const message = error instanceof Error ? error.message : String(error);
  if (!(error instanceof ReloraError)) return { error: { message, exitCode: exitCodeOf(error) } };
  const { code, reason, fields, metadata } = error;
  return { error: { code, reason, message, fields, metadata, exitCode: exitCodeOf(error) } };
}
