import { CommanderError } from 'commander';
import { DatasetFailedError, JobFailedError, ReloraError } from '@relora/sdk';

/** Exit codes of the process; scripts may rely on them, see `relora --help`. */
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
  if (mistakesHere.includes(error.reason)) return exitCodes.usage;
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

/** Reasons of errors that were found before the server was asked. */
const mistakesHere = ['ADDRESS_MALFORMED', 'FILE_UNREADABLE', 'TOKEN_IN_PLAIN_TEXT'];

/** Texts for the system's error codes about a file or folder. */
const pathMistakes: Record<string, string> = {
  ENOENT: 'no such file or folder',
  EACCES: 'this user has no permission',
  EPERM: 'this user may not do this',
  EISDIR: 'it is a folder, but a file is needed',
  ENOTDIR: 'it is a file, but a folder is needed',
  EEXIST: 'it exists already',
};

function isPathMistake(error: unknown): boolean {
  return error instanceof Error && Object.hasOwn(pathMistakes, (error as NodeJS.ErrnoException).code ?? '');
}

/** What is wrong with a file or folder, without its name. */
export function pathProblem(error: unknown): string {
  const { code = '', message } = error as NodeJS.ErrnoException;
  return isPathMistake(error) ? pathMistakes[code]! : message;
}

function messageOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { path } = error as NodeJS.ErrnoException;
  return isPathMistake(error) && path !== undefined ? `${path}: ${pathProblem(error)}` : error.message;
}

/** Without what grpc-js and Node put before the actual message. */
export function plainMessage(message: string): string {
  return message
    .replace('No connection established. Last error: ', '')
    .replace(/\bError: /g, '')
    .replace(/\.$/, '');
}

/** An error for people: what is wrong, each invalid field on a line of its own, and what to do. */
export function describeError(error: unknown, address: string): string[] {
  if (!(error instanceof ReloraError)) return [messageOf(error)];
  if (error.code === 'UNAVAILABLE' && error.reason === '') {
    return [
      `No server answers at ${address}: ${plainMessage(error.message)}`,
      'Start one with "npx relora-server", or name another with --address or RELORA_ADDRESS.',
    ];
  }
  if (error.code === 'DEADLINE_EXCEEDED' && error.reason === '') return [`${address}: ${error.message}`];
  if (error.fields.length === 0) return [error.message];
  const width = Math.max(...error.fields.map(({ field }) => field.length));
  return [
    'The request was refused:',
    ...error.fields.map(({ field, description }) => `  ${field.padEnd(width)}  ${description}`),
  ];
}

/** An error for programs. */
export function errorJson(error: unknown): object {
  const exitCode = exitCodeOf(error);
  if (!(error instanceof ReloraError)) return { error: { message: messageOf(error), exitCode } };
  const { code, reason, message, fields, metadata } = error;
  return { error: { code, reason, message, fields, metadata, exitCode } };
}
