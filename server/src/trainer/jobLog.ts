import { appendFile, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

/** Number of attempts whose output is kept. */
const attemptsKept = 10;
/** Output that waits to be written; above this, output is dropped and a line says so. */
const waitingBytesMax = 256 * 1024;
/** Bytes of a file that are read at a time. */
const readBytes = 64 * 1024;

export interface LogLine {
  attempt: number;
  timeMs: number;
  isError: boolean;
  text: string;
}

/**
 * What a trainer printed, in the folder of its job: one file for each attempt, with the newest part of the output. It is an aid, not a
 * record: it is not synced, and a full disk does not stop the training.
 */
export class JobLog {
  private waiting: string[] = [];
  private waitingBytes = 0;
  private leftOut = 0;
  private writing: Promise<void> | undefined;
  private size = 0;

  constructor(
    private readonly folder: string,
    private readonly attempt: number,
    /** For both halves of an attempt's output. */
    private readonly bytesMax: number,
  ) {}

  write(isError: boolean, line: string): void {
    if (this.waitingBytes > waitingBytesMax) {
      this.leftOut++;
      return;
    }
    if (this.leftOut > 0) {
      const { leftOut } = this;
      this.leftOut = 0;
      this.write(true, `(${leftOut} lines were printed too fast and are left out)`);
    }
    const text = `${new Date().toISOString()} ${isError ? 'E' : 'O'} ${line.replaceAll(/[\r\n]/g, ' ')}\n`;
    this.waiting.push(text);
    this.waitingBytes += text.length;
    this.writing ??= this.writeWaiting().finally(() => (this.writing = undefined));
  }

  /** Resolves when everything that was printed is in the file. */
  async flush(): Promise<void> {
    while (this.writing !== undefined) await this.writing;
  }

  private async writeWaiting(): Promise<void> {
    try {
      if (this.size === 0) await this.begin();
      while (this.waiting.length > 0) {
        const text = this.waiting.splice(0).join('');
        this.waitingBytes = 0;
        const path = logPath(this.folder, this.attempt);
        await appendFile(path, text, { mode: 0o600 });
        this.size += Buffer.byteLength(text);
        if (this.size < this.bytesMax / 2) continue;
        await rename(path, `${path}.old`);
        this.size = 0;
      }
    } catch {
      this.waiting = []; // the server's own log has it, too
      this.waitingBytes = 0;
    }
  }

  private async begin(): Promise<void> {
    await mkdir(this.folder, { recursive: true, mode: 0o700 });
    const old = (await attemptsIn(this.folder)).filter((attempt) => attempt <= this.attempt - attemptsKept);
    for (const attempt of old)
      for (const end of ['', '.old']) await rm(`${logPath(this.folder, attempt)}${end}`, { force: true });
  }
}

/** Attempts that have printed something, oldest first. */
export async function attemptsIn(folder: string): Promise<number[]> {
  const names = await readdir(folder).catch(() => []);
  const attempts = names.flatMap((name) => /^([0-9]+)\.log(?:\.old)?$/.exec(name)?.[1] ?? []);
  return [...new Set(attempts.map(Number))].sort((a, b) => a - b);
}

/** Reads what an attempt printed; called again, reads what it has printed since. */
export class LogReader {
  private inode: number | null = null;
  private offset = 0;
  private rest = '';

  constructor(
    private readonly folder: string,
    private readonly attempt: number,
  ) {}

  async *read(): AsyncGenerator<LogLine[], void, undefined> {
    const path = logPath(this.folder, this.attempt);
    const old = await inodeOf(`${path}.old`);
    // The first time it reads the older half first; later that half is only of interest if the file being read was renamed to it.
    if (old !== null && (this.inode === null || old === this.inode)) {
      yield* this.readFile(`${path}.old`);
      this.offset = 0;
      this.inode = -1;
    }
    const inode = await inodeOf(path);
    if (inode === null) return;
    if (inode !== this.inode) this.offset = 0;
    this.inode = inode;
    yield* this.readFile(path);
  }

  private async *readFile(path: string): AsyncGenerator<LogLine[], void, undefined> {
    const file = await open(path, 'r').catch(() => null);
    if (file === null) return;
    try {
      const buffer = Buffer.alloc(readBytes);
      for (;;) {
        const { bytesRead } = await file.read(buffer, 0, readBytes, this.offset);
        if (bytesRead === 0) return;
        // Up to the end of a line, so that no character is cut.
        const end = buffer.subarray(0, bytesRead).lastIndexOf(0x0a) + 1 || bytesRead;
        this.offset += end;
        const lines = (this.rest + buffer.toString('utf8', 0, end)).split('\n');
        this.rest = lines.pop()!;
        if (lines.length > 0) yield lines.map((line) => this.parse(line));
        if (end < bytesRead && bytesRead < readBytes) return; // the last line is incomplete
      }
    } finally {
      await file.close();
    }
  }

  private parse(line: string): LogLine {
    const [time = '', stream = '', ...text] = line.split(' ');
    const timeMs = Date.parse(time);
    return {
      attempt: this.attempt,
      timeMs: Number.isNaN(timeMs) ? 0 : timeMs,
      isError: stream === 'E',
      text: text.join(' '),
    };
  }
}

function logPath(folder: string, attempt: number): string {
  return join(folder, `${attempt}.log`);
}

async function inodeOf(path: string): Promise<number | null> {
  return await stat(path).then(
    ({ ino }) => ino,
    () => null,
  );
}
