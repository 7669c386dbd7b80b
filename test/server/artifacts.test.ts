import { createHash } from 'node:crypto';
import { mkdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { sealArtifact } from '../../server/dist/artifacts/sealArtifact.js';
import { ArtifactDamaged } from '../../server/dist/artifacts/checkedRead.js';
import { FolderBlobs } from '../../server/dist/store/blobStore.js';
import { claim, openParts, submit, type Parts } from './parts.js';

const content = Buffer.from(Array.from({ length: 1000 }, (_, index) => index % 251));

const sealedAs = {
  format: 'huggingFace',
  weightType: 'float32',
  castErrorMax: 0,
  cycle: 1,
} as const;

async function sealed(
  parts: Parts,
  artifactIds: string[],
  bytes = content,
): Promise<{ jobId: string; folder: string }> {
  const { id } = await submit(parts);
  const key = { jobId: id, attempt: (await claim(parts)).attempt };
  const folder = join(parts.dataFolder, 'jobs', id, 'artifacts');
  for (const artifactId of artifactIds) {
    mkdirSync(join(folder, artifactId), { recursive: true });
    const files = ['config.json', 'model.safetensors'].map((fileName) => {
      writeFileSync(join(folder, artifactId, fileName), bytes);
      return {
        fileName,
        sizeBytes: bytes.length,
        sha256: createHash('sha256').update(bytes).digest('hex'),
      };
    });
    await sealArtifact(parts.attempts, key, { ...sealedAs, id: artifactId, step: 20, files });
  }
  return { jobId: id, folder };
}

async function opened(parts: Parts, jobId: string, artifactId: string, fileName: string) {
  return await parts.artifacts.openFile((await parts.artifacts.find(jobId, artifactId))!, fileName);
}

async function read(parts: Parts, jobId: string, offset: number): Promise<Buffer> {
  const file = await opened(parts, jobId, 'merged-model-1', 'model.safetensors');
  if (typeof file === 'string') throw new Error(file);
  const pieces: Uint8Array[] = [];
  for await (const piece of file.read(offset, 64)) pieces.push(piece);
  await file.close();
  expect(pieces.every((piece) => piece.length <= 64)).toBe(true);
  return Buffer.concat(pieces);
}

describe('an artifact', () => {
  it('is read from any offset on', async () => {
    const parts = await openParts();
    const { jobId } = await sealed(parts, ['merged-model-1']);
    for (const offset of [0, 1, 64, 999, 1000])
      expect((await read(parts, jobId, offset)).equals(content.subarray(offset))).toBe(true);
  });

  it('that is missing, cut, lengthened or replaced by a link is lost data, the others are served', async () => {
    const parts = await openParts();
    const { jobId, folder } = await sealed(parts, ['merged-model-1', 'merged-model-2']);
    const path = join(folder, 'merged-model-1', 'model.safetensors');
    const open = async (artifactId: string, fileName = 'model.safetensors') => {
      const file = await opened(parts, jobId, artifactId, fileName);
      if (typeof file === 'string') return file;
      await file.close();
      return 'open';
    };
    const damages = [
      () => truncateSync(path, 999),
      () => writeFileSync(path, Buffer.concat([content, content])),
      () => rmSync(path),
      () => symlinkSync(join(folder, 'merged-model-2', 'model.safetensors'), path),
      () => {
        rmSync(path);
        mkdirSync(path);
      },
    ];
    for (const damage of damages) {
      damage();
      expect(await open('merged-model-1')).toBe('dataLoss');
      expect(await open('merged-model-2')).toBe('open');
    }
    expect(await parts.artifacts.find(jobId, 'merged-model-3')).toBeUndefined();
    expect(await open('merged-model-2', '../../../store.db')).toBe('notFound');
  });

  it('that is cut while it is read ends with an error, not short', async () => {
    const parts = await openParts();
    const { jobId, folder } = await sealed(
      parts,
      ['merged-model-1'],
      Buffer.alloc(7 * 2 ** 20, 'longer than is read ahead'),
    );
    const file = await opened(parts, jobId, 'merged-model-1', 'config.json');
    if (typeof file === 'string') throw new Error(file);
    const reading = file.read(0, 64);
    await reading.next();
    truncateSync(join(folder, 'merged-model-1', 'config.json'), 100);
    await expect(
      (async () => {
        for await (const _piece of reading) /* to the end */ ;
      })(),
    ).rejects.toThrow(ArtifactDamaged);
    await file.close();
  });

  it.each([
    ['that was never read', []],
    ['whose chunks have their sums', [0]],
    ['that is read from an offset alone', [8 * 2 ** 20 + 5]],
  ])('%s gives nobody a whole file with a flipped bit, and says where it is', async (_, readsBefore) => {
    const parts = await openParts();
    const { id: jobId } = await submit(parts);
    const key = { jobId, attempt: (await claim(parts)).attempt };
    const large = Buffer.alloc(20 * 2 ** 20 + 3, 'weights');
    const blobs = new FolderBlobs(parts.dataFolder);
    const name = `jobs/${jobId}/artifacts/large/model.safetensors`;
    const { sha256, sizeBytes } = await blobs.put(
      name,
      (async function* () {
        yield large;
      })(),
    );
    const file = { fileName: 'model.safetensors', sizeBytes, sha256 };
    await sealArtifact(parts.attempts, key, { ...sealedAs, id: 'large', step: 20, files: [file] });
    const artifact = (await parts.artifacts.find(jobId, 'large'))!;
    const lengthFrom = async (offset: number): Promise<number> => {
      const open = await parts.artifacts.openFile(artifact, file.fileName);
      if (typeof open === 'string') throw new Error(open);
      let length = 0;
      try {
        for await (const piece of open.read(offset, 2 ** 20)) length += piece.length;
      } finally {
        await open.close();
      }
      return length;
    };
    for (const offset of readsBefore) expect(await lengthFrom(offset)).toBe(sizeBytes - offset);

    const place = 8 * 2 ** 20 + 4_000_000; // in the second chunk
    const flipped = Buffer.from(large);
    flipped[place]! ^= 1;
    writeFileSync(join(parts.dataFolder, name), flipped);
    await expect(lengthFrom(0)).rejects.toThrow(ArtifactDamaged);
    await expect(lengthFrom(8 * 2 ** 20 + 5)).rejects.toThrow(ArtifactDamaged);
    // An intact chunk can still be downloaded if its hash is known.
    if (readsBefore.length > 0) expect(await lengthFrom(16 * 2 ** 20)).toBe(4 * 2 ** 20 + 3);
    const found = [];
    for await (const { problem } of parts.scrubber.scrub({ kind: 'jobs', id: jobId }, () => {}))
      found.push(problem);
    expect(found).toHaveLength(1);
    expect(found[0]).toMatch(/^Its SHA-256 is [0-9a-f]{64}, not [0-9a-f]{64}/);
    if (readsBefore.length > 0)
      expect(found[0]).toContain('the first change is in bytes 8388608 to 16777215');

    writeFileSync(join(parts.dataFolder, name), large);
    expect(await lengthFrom(7)).toBe(sizeBytes - 7);
  });

  it('is listed oldest first, page by page, and is sealed once', async () => {
    const parts = await openParts();
    const ids = ['merged-model-1', 'merged-model-2', 'merged-model-3'];
    const { jobId } = await sealed(parts, [...ids, 'merged-model-2']);
    const first = await parts.artifacts.list(jobId, { after: null, artifactsMax: 2 });
    const second = await parts.artifacts.list(jobId, { after: first.next, artifactsMax: 2 });
    expect([...first.artifacts, ...second.artifacts].map(({ id }) => id)).toEqual(ids);
    expect([first.next?.id, second.next]).toEqual(['merged-model-2', null]);
    // The place where a page ends stays, though its artifact goes.
    await parts.exports.delete(jobId, 'merged-model-2');
    const again = await parts.artifacts.list(jobId, { after: first.next, artifactsMax: 2 });
    expect(again.artifacts.map(({ id }) => id)).toEqual(['merged-model-3']);
    expect(first.artifacts[0]).toMatchObject({
      sizeBytes: 2000,
      step: 20,
      files: [{ fileName: 'config.json' }, { fileName: 'model.safetensors' }],
    });
  });
});
