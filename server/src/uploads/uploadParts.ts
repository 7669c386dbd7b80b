import { createHash, randomBytes, type Hash } from 'node:crypto';
import { constants, createReadStream } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import type { BlobStore } from '../store/blobStore.js';
import { notePurge } from '../store/chunkDigests.js';
import type { Database } from '../store/database.js';
import type { BlobFileRow } from '../store/schema.js';
import { BlobDamaged } from '../store/stage.js';

const pieceBytes = 1 << 20;

/** The folder of a data set or of weights that has the parts of an unfinished upload. */
export function partsFolder(owner: string): string {
  return `${owner}/parts`;
}

/**
 * What arrived of unfinished uploads, where every server of the store finds it: a client may send the rest to another server. A part is a
 * blob with a row that says where it begins in its file; each part begins where the previous one ends.
 */
export class UploadParts {
  constructor(
    private readonly db: Database,
    private readonly blobs: BlobStore,
    /** Bytes per part; the last of a file may be shorter. */
    readonly partBytes: number,
  ) {}

  /** Received bytes by file index, counted from the start of the file. */
  async received(owner: string): Promise<ReadonlyMap<number, number>> {
    const rows = await this.db
      .selectFrom('blob_files')
      .select(['file_name', 'size_bytes'])
      .where('folder', '=', partsFolder(owner))
      .orderBy('file_name')
      .execute();
    const received = new Map<number, number>();
    for (const row of rows) {
      const { fileIndex, offset } = placeOf(row.file_name);
      const end = received.get(fileIndex) ?? 0;
      if (offset === end) received.set(fileIndex, end + row.size_bytes);
    }
    return received;
  }

  /** Copies what arrived of a file to this machine and verifies it; returns its hash so far. Throws BlobDamaged. */
  async bring(owner: string, fileIndex: number, path: string): Promise<Hash> {
    const rows = await this.db
      .selectFrom('blob_files')
      .selectAll()
      .where('folder', '=', partsFolder(owner))
      .where('file_name', 'like', `${fileIndex}-%`)
      .orderBy('file_name')
      .execute();
    const whole = createHash('sha256');
    const file = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o600);
    try {
      let end = 0;
      for (const row of rows) {
        if (placeOf(row.file_name).offset !== end) break;
        // The bytes on this machine may come from an earlier attempt that was dropped.
        if ((await digestOf(file, end, row.size_bytes)) !== row.sha256) await this.fetch(row, file, end);
        await digestInto(whole, file, end, row.size_bytes);
        end += row.size_bytes;
      }
      await file.truncate(end);
    } finally {
      await file.close();
    }
    return whole;
  }

  /** Stores bytes of a file on this machine as its next part; false if another server has already stored a part there. */
  async add(owner: string, fileIndex: number, path: string, start: number, end: number): Promise<boolean> {
    const blob = `${owner}/uploads/part-0-${randomBytes(8).toString('hex')}`;
    const source = createReadStream(path, { start, end: end - 1, highWaterMark: pieceBytes });
    const { sha256, sizeBytes } = await this.blobs.put(blob, source, end - start);
    const row = {
      folder: partsFolder(owner),
      file_name: nameAt(fileIndex, start),
      ...{ blob, size_bytes: sizeBytes, sha256 },
    };
    const added = await this.db
      .insertInto('blob_files')
      .values(row)
      .onConflict((conflict) => conflict.doNothing())
      .returning('blob')
      .executeTakeFirst();
    if (added === undefined) await this.blobs.remove(blob);
    return added !== undefined;
  }

  /** The received file does not have the announced digest. */
  async drop(owner: string, fileIndex: number): Promise<void> {
    await this.db.transaction().execute(async (trx) => {
      const deleted = await trx
        .deleteFrom('blob_files')
        .where('folder', '=', partsFolder(owner))
        .where('file_name', 'like', `${fileIndex}-%`)
        .returning('blob')
        .execute();
      for (const { blob } of deleted) await notePurge(trx, blob);
    });
  }

  private async fetch({ blob: name, size_bytes, sha256 }: BlobFileRow, file: FileHandle, offset: number) {
    const blob = await this.blobs.openRead(name);
    if (blob === undefined) throw new BlobDamaged(`${name} of an upload is missing in the store`);
    const hash = createHash('sha256');
    try {
      let position = offset;
      for await (const piece of blob.read(0, size_bytes, pieceBytes)) {
        hash.update(piece);
        await file.write(piece, 0, piece.length, position);
        position += piece.length;
      }
    } finally {
      await blob.close();
    }
    const actual = hash.digest('hex');
    if (actual !== sha256) throw new BlobDamaged(`${name} of an upload has SHA-256 ${actual}, not ${sha256}`);
  }
}

/** Names sort by offset. */
function nameAt(fileIndex: number, offset: number): string {
  return `${fileIndex}-${String(offset).padStart(16, '0')}`;
}

function placeOf(name: string): { fileIndex: number; offset: number } {
  const [fileIndex, offset] = name.split('-').map(Number);
  return { fileIndex: fileIndex!, offset: offset! };
}

async function digestOf(file: FileHandle, start: number, sizeBytes: number): Promise<string> {
  const hash = createHash('sha256');
  await digestInto(hash, file, start, sizeBytes);
  return hash.digest('hex');
}

/** If the file is shorter, as much as there is. */
async function digestInto(hash: Hash, file: FileHandle, start: number, sizeBytes: number): Promise<void> {
  const piece = Buffer.allocUnsafe(Math.min(pieceBytes, sizeBytes));
  for (let done = 0; done < sizeBytes;) {
    const { bytesRead } = await file.read(piece, 0, Math.min(piece.length, sizeBytes - done), start + done);
    if (bytesRead === 0) return;
    hash.update(piece.subarray(0, bytesRead));
    done += bytesRead;
  }
}
