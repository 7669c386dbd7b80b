import { createReadStream } from 'node:fs';
import { Readable } from 'node:stream';
import type { ReadableStream } from 'node:stream/web';
import { IntegrityError, type ExportedJobFile, type JobFiles } from '@relora/sdk';
import { createTarDecoder, createTarPacker, type ParsedTarEntry } from 'modern-tar';

/** A tar of files that arrive one after another; at most 8 MiB of it are in memory. */
export function tarOf(files: AsyncIterable<ExportedJobFile>): Readable {
  const { readable, controller } = createTarPacker();
  const pack = async (): Promise<void> => {
    for await (const { fileName, sizeBytes, content } of files) {
      const entry = controller.add({
        name: fileName,
        size: sizeBytes,
        type: 'file',
        mode: 0o644,
        mtime: new Date(0),
      });
      const writer = entry.getWriter();
      for await (const bytes of content) await writer.write(bytes);
      await writer.close();
    }
    controller.finalize();
  };
  pack().catch((error: unknown) => controller.error(error));
  return Readable.fromWeb(readable as ReadableStream);
}

/** The files of a tar by name. Reading them in the tar's order takes a single pass, whatever its length. */
export class TarFiles implements JobFiles {
  private entries: AsyncIterator<ParsedTarEntry> | undefined;

  private constructor(
    private readonly path: string,
    readonly archive: string,
  ) {}

  /** Reads the first file, which names the others. */
  static async open(path: string): Promise<TarFiles> {
    for await (const { header, body } of entriesOf(path)) {
      if (header.name !== 'archive.json' || header.size > archiveBytesMax) break;
      return new TarFiles(path, await new Response(body as never).text());
    }
    throw new IntegrityError(`${path} is not a tar file of an exported job, which begins with archive.json`, {
      code: 'DATA_LOSS',
    });
  }

  async *read(fileName: string, offsetBytes: number): AsyncGenerator<Uint8Array> {
    const { body } = (await this.find(fileName)) ?? (await this.find(fileName)) ?? {};
    if (body === undefined)
      throw new IntegrityError(`${this.path} does not contain ${fileName}, or ends before it`, {
        code: 'DATA_LOSS',
      });
    let position = 0;
    for await (const bytes of body as unknown as AsyncIterable<Uint8Array>) {
      const from = Math.max(0, offsetBytes - position);
      position += bytes.length;
      if (from < bytes.length) yield bytes.subarray(from);
    }
  }

  /** Searches from the current position; undefined at the end, after which a new pass begins. */
  private async find(fileName: string): Promise<ParsedTarEntry | undefined> {
    this.entries ??= entriesOf(this.path)[Symbol.asyncIterator]();
    for (;;) {
      const next = await this.entries.next();
      if (next.done === true) break;
      if (next.value.header.name === fileName) return next.value;
      await next.value.body.cancel();
    }
    this.entries = undefined;
    return undefined;
  }
}

/** Enough for the names of 20,000 files. */
const archiveBytesMax = 16 << 20;

function entriesOf(path: string): AsyncIterable<ParsedTarEntry> {
  const content = Readable.toWeb(createReadStream(path, { highWaterMark: 1 << 20 }));
  return content.pipeThrough(createTarDecoder() as never) as unknown as AsyncIterable<ParsedTarEntry>;
}
