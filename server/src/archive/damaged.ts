import { ServiceError } from '../errors.js';
import { BlobDamaged } from '../store/stage.js';

/** Reads files that the store keeps of `name`; where one is missing or not what was sealed, that is what it throws (DATA_LOSS). */
export async function orDamaged<T>(name: string, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    throw damageIn(name, error) ?? error;
  }
}

export function damageIn(name: string, error: unknown): ServiceError<'STORED_FILES_DAMAGED'> | undefined {
  const isMissing = (error as NodeJS.ErrnoException).code === 'ENOENT';
  if (!isMissing && !(error instanceof BlobDamaged)) return undefined;
  return new ServiceError('STORED_FILES_DAMAGED', { name });
}
