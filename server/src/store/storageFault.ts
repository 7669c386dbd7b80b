/** A fault of the file system that somebody can mend: its reason, and a message that names the path. */
export interface StorageFault {
  reason: 'STORAGE_FULL' | 'STORAGE_UNWRITABLE';
  message: string;
}

/** What to do about it, as the middle of a sentence. */
export const storageCures: Readonly<Record<StorageFault['reason'], string>> = {
  STORAGE_FULL: 'make room',
  STORAGE_UNWRITABLE: 'give the user of the server the right to write there, or mount it for writing',
};

const unwritableCodes = new Set(['EACCES', 'EPERM']);

/** What an error of writing a file of ours says of the disk; undefined for any other error. */
export function storageFault(error: unknown): StorageFault | undefined {
  const { code, syscall, path, message } = (error ?? {}) as Partial<
    Record<'code' | 'syscall' | 'path' | 'message', unknown>
  >;
  if (code === 'ENOSPC' || code === 'EDQUOT')
    return { reason: 'STORAGE_FULL', message: `The disk of the data folder is full (${String(message)})` };
  // Node's recursive mkdir says ENOENT for a file system that is read-only: a missing parent it would have made.
  const isReadOnly = code === 'EROFS' || (code === 'ENOENT' && syscall === 'mkdir');
  if (isReadOnly || (typeof code === 'string' && unwritableCodes.has(code))) {
    const where = typeof path === 'string' ? path : 'A file';
    return {
      reason: 'STORAGE_UNWRITABLE',
      message: `${where} cannot be written (${isReadOnly ? 'it is read-only' : code})`,
    };
  }
  return undefined;
}
