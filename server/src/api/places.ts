import type { Config } from '../config.js';
import { ServiceError } from '../errors.js';

export interface StreamPlaces {
  downloadPlaces: Places;
  uploadPlaces: Places;
}

/** Limits for streams, each of which keeps a file open. */
export function streamPlaces({
  downloadsMax,
  uploadsMax,
}: Pick<Config, 'downloadsMax' | 'uploadsMax'>): StreamPlaces {
  return {
    downloadPlaces: new Places(downloadsMax, () => new ServiceError('DOWNLOADS_FULL', { downloadsMax })),
    uploadPlaces: new Places(uploadsMax, () => new ServiceError('UPLOADS_FULL', { uploadsMax })),
  };
}

/** Limits how many things may be open at once. */
export class Places {
  private takenCount = 0;

  constructor(
    private readonly max: number,
    private readonly refusal: () => ServiceError,
  ) {}

  /** Takes a place until it is disposed of; throws the refusal if none is free. */
  take(): Disposable {
    if (this.takenCount >= this.max) throw this.refusal();
    this.takenCount++;
    return { [Symbol.dispose]: () => void this.takenCount-- };
  }
}
