/** A path that was refused, with the reason for the client. */
export interface PathRefused {
  problem: string;
}

/** Files and folders on the server that clients may name: only what lies, links resolved, inside a folder of RELORA_ALLOWED_FOLDERS. */
export class AllowedFolders {
  constructor(private readonly folders: readonly string[]) {}

  /** A regular file, links resolved, that can be read. */
  async file(_path: string): Promise<{ path: string; sizeBytes: number } | PathRefused> {
    throw new Error('not yet');
  }

  /** A folder, links resolved. */
  async folder(_path: string): Promise<{ path: string } | PathRefused> {
    throw new Error('not yet');
  }
}
