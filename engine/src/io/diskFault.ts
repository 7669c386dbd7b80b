const codes = new Set(['EIO', 'ESTALE']);

/**
 * Whether a file could not be read because of its disk, or because of the server of a network file system. That says nothing about the file,
 * which may be whole: such errors are passed on as they are, so that the work is tried again.
 */
export function isDiskFault(error: unknown): boolean {
  return codes.has((error as NodeJS.ErrnoException).code ?? '');
}
