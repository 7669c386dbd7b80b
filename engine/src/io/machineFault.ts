const codes = new Set(['EIO', 'ESTALE', 'EMFILE', 'ENFILE', 'ENOMEM']);

/**
 * Whether a file could not be read because of its disk or the machine: that says nothing about the file, which may be whole. Such errors are
 * passed on as they are, so that the work is tried again.
 */
export function isMachineFault(error: unknown): boolean {
  return codes.has((error as NodeJS.ErrnoException).code ?? '');
}
