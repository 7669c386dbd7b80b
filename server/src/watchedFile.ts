import { stat } from 'node:fs/promises';

/** How soon a change takes effect that this server did not make itself. */
const lookMs = 1000;

/** A file that is read again whenever it changes, however it is changed. */
export class WatchedFile {
  private timer: NodeJS.Timeout | undefined;

  private constructor(
    private readonly path: string,
    private readonly read: () => Promise<void>,
    private readonly onFailure: (error: unknown) => void,
    private stamp: string,
  ) {}

  /** Reads it for the first time and throws if that fails; later failures are passed to `onFailure`. */
  static async open(
    path: string,
    read: () => Promise<void>,
    onFailure: (error: unknown) => void,
  ): Promise<WatchedFile> {
    const file = new WatchedFile(path, read, onFailure, await stampOf(path));
    await read();
    file.timer = setInterval(() => void file.look(), lookMs).unref();
    return file;
  }

  close(): void {
    clearInterval(this.timer);
  }

  /** Reads the file now if it has changed. */
  async look(): Promise<void> {
    const stamp = await stampOf(this.path);
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    try {
      await this.read();
    } catch (error) {
      this.onFailure(error);
    }
  }
}

async function stampOf(path: string): Promise<string> {
  try {
    const { ino, size, mtimeNs } = await stat(path, { bigint: true });
    return `${ino} ${size} ${mtimeNs}`;
  } catch {
    return 'none';
  }
}
