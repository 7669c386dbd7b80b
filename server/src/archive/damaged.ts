import { ServiceError } from '../errors.js';
import { BlobDamaged } from '../store/stage.js';

/** Reads files of `name`; throws DATA_LOSS with that name if one is missing or is not what was sealed. */
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
