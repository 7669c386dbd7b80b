import { createHash } from 'node:crypto';
import { chunkBytes, Digester } from '../store/blobStore.js';
import { ChunkDigests } from '../store/chunkDigests.js';
import type { Database } from '../store/database.js';
import type { Stage } from '../store/stage.js';
import { sealedOf, type Sealed, type SealedFile, type Subject } from './sealed.js';

/** Bytes hashed between two turns of the event loop: about a millisecond. */
const pieceBytes = 2 ** 20;

/** Limit of manifests: those of large data sets have some megabytes. */
const manifestBytesMax = 256 * 2 ** 20;

/** A file that was read and verified. */
export interface ScrubbedFile {
  /** `jobs/…/artifacts/…`, `jobs/…/checkpoints/…`, `datasets/…` or `weights/…`. */
  name: string;
  fileName: string;
  sizeBytes: number;
  /** Empty if the file is as it was sealed. */
  problem: string;
}

type Outcome = Omit<ScrubbedFile, 'name'>;

/** Reads sealed files again and compares them with their digests. */
export class Scrubber {
  private readonly digests: ChunkDigests;

  constructor(
    private readonly db: Database,
    private readonly stage: Stage,
  ) {
    this.digests = new ChunkDigests(db);
  }

  /** Checks every file of a subject. `checkGoing` is called between pieces and throws to end it. */
  async *scrub(subject: Subject, checkGoing: () => void): AsyncGenerator<ScrubbedFile> {
    for await (const sealed of sealedOf(this.db, subject)) {
      for await (const outcome of this.filesOf(sealed, checkGoing)) {
        checkGoing();
        if (outcome.problem !== '' && !(await sealed.isThere())) break; // deleted while it was read
        yield { name: sealed.name, ...outcome };
      }
    }
  }

  private async *filesOf({ folder, content }: Sealed, checkGoing: () => void): AsyncGenerator<Outcome> {
    if ('files' in content) {
      for (const file of content.files) yield await this.look(folder, file, checkGoing);
      return;
    }
    const { outcome, text } = await this.readManifest(folder, content.manifestSha256);
    yield outcome;
    if (outcome.problem !== '') return; // its content cannot be trusted
    for (const file of content.filesOf(JSON.parse(text))) yield await this.look(folder, file, checkGoing);
  }

  private async readManifest(folder: string, sha256: string): Promise<{ outcome: Outcome; text: string }> {
    const fileName = 'manifest.json';
    const blob = await this.stage.openFile(folder, fileName);
    if (blob === undefined) return { outcome: { fileName, sizeBytes: 0, problem: missing }, text: '' };
    try {
      const pieces: Uint8Array[] = [];
      for await (const piece of blob.read(0, Math.min(blob.sizeBytes, manifestBytesMax), pieceBytes))
        pieces.push(piece);
      const bytes = Buffer.concat(pieces);
      const found = createHash('sha256').update(bytes).digest('hex');
      const problem = found === sha256 ? '' : differs(found, sha256);
      return { outcome: { fileName, sizeBytes: blob.sizeBytes, problem }, text: bytes.toString('utf8') };
    } finally {
      await blob.close();
    }
  }

  private async look(folder: string, file: SealedFile, checkGoing: () => void): Promise<Outcome> {
    const { fileName } = file;
    const blob = await this.stage.openFile(folder, fileName);
    if (blob === undefined) return { fileName, sizeBytes: file.sizeBytes ?? 0, problem: missing };
    try {
      const { sizeBytes } = blob;
      if (file.sizeBytes !== null && file.sizeBytes !== sizeBytes)
        return { fileName, sizeBytes, problem: `It has ${sizeBytes} bytes, not ${file.sizeBytes}` };
      const digester = new Digester();
      for await (const piece of blob.read(0, sizeBytes, pieceBytes)) {
        digester.add(piece);
        checkGoing();
      }
      const { sha256, crcs } = digester.finish();
      const before = await this.digests.find(blob.name, crcs.length);
      if (sha256 !== file.sha256) {
        const chunk = before?.findIndex((crc, index) => crc !== crcs[index]) ?? -1;
        return { fileName, sizeBytes, problem: differs(sha256, file.sha256) + placeOf(chunk, sizeBytes) };
      }
      // Stored so that downloads can verify each chunk, and the next scrub can say where a change is.
      if (before === undefined && folder.includes('/artifacts/')) await this.digests.write(blob.name, crcs);
      return { fileName, sizeBytes, problem: '' };
    } finally {
      await blob.close();
    }
  }
}

const missing = 'It is missing, or not a file';

function differs(found: string, expected: string): string {
  return `Its SHA-256 is ${found}, not ${expected}`;
}

function placeOf(chunk: number, sizeBytes: number): string {
  if (chunk < 0) return '';
  const end = Math.min((chunk + 1) * chunkBytes, sizeBytes);
  return `; the first change is in bytes ${chunk * chunkBytes} to ${end - 1}`;
}
