import type * as S3 from '@aws-sdk/client-s3';
import {
  chunkBytes,
  Digester,
  wordsOf,
  type BlobDigest,
  type BlobStore,
  type ListedBlob,
  type OpenBlob,
} from './blobStore.js';
import { BlobsAway, StoreUnusable } from './storeError.js';
import type { StoreUrl } from './storeUrl.js';

type Sdk = typeof S3;
type S3Url = Extract<StoreUrl, { kind: 's3' }>;

/** Parts of one object that are uploaded at the same time. */
const partsAtOnce = 4;
/** S3 allows 10,000. */
const partsMax = 9000;
const namesInDelete = 1000;
/** S3 lists no more at once. */
const uploadsInPageDefault = 1000;
/** Attempts for one request, with growing pauses. */
const attemptsMax = 5;
/** Errors for a request that was changed in transit. The SDK takes them for mistakes of the caller, and does not retry. */
const changedOnTheWay = new Set(['BadDigest', 'InvalidDigest', 'XAmzContentSHA256Mismatch']);
/** A connection without traffic for this long is closed, and the request retried. */
const silenceMsDefault = 60_000;
/** How often an interrupted read is continued from where it stopped. */
const cutsMax = 5;

/**
 * Blobs as objects of a bucket. An object becomes visible once it is complete: S3 shows it only after its last byte, or all of its parts,
 * arrived. Every request carries a checksum of its bytes.
 */
export class S3Blobs implements BlobStore {
  private constructor(
    private readonly sdk: Sdk,
    private readonly client: S3.S3Client,
    private readonly url: S3Url,
    private readonly uploadsInPage: number,
  ) {}

  /** Loads the SDK only if it is needed. */
  static async open(
    url: S3Url,
    { silenceMs = silenceMsDefault, uploadsInPage = uploadsInPageDefault } = {},
  ): Promise<S3Blobs> {
    const sdk = await import('@aws-sdk/client-s3').catch((error: unknown) => {
      throw new StoreUnusable(
        'RELORA_STORE_URL names an S3 store: install the server with its optional dependencies, or also install @aws-sdk/client-s3',
        {
          cause: error,
        },
      );
    });
    const client = new sdk.S3Client({
      region: url.region,
      ...(url.endpoint === undefined ? {} : { endpoint: url.endpoint }),
      forcePathStyle: url.pathStyle,
      maxAttempts: attemptsMax,
      // Not requestTimeout, which only warns: a request that never ends would block its job forever.
      requestHandler: { connectionTimeout: 5000, socketTimeout: silenceMs },
    });
    return new S3Blobs(sdk, client, url, uploadsInPage);
  }

  close(): void {
    this.client.destroy();
  }

  async put(name: string, source: AsyncIterable<Uint8Array>, sizeBytes = 0): Promise<BlobDigest> {
    const partBytes = Math.max(chunkBytes, Math.ceil(sizeBytes / partsMax / 2 ** 20) * 2 ** 20);
    const digester = new Digester();
    const pieces = partsOf(source, partBytes, digester);
    const first = await pieces.next();
    const second = first.done === true ? first : await pieces.next();
    if (second.done === true) {
      const Body = first.done === true ? new Uint8Array(0) : first.value;
      await this.call(
        async () => await this.client.send(new this.sdk.PutObjectCommand({ ...this.at(name), Body })),
      );
    } else await this.putParts(name, [first.value!, second.value], pieces);
    return digester.finish();
  }

  async openRead(name: string): Promise<OpenBlob | undefined> {
    const head = await this.call(async () =>
      this.client.send(new this.sdk.HeadObjectCommand(this.at(name))).catch((error: unknown) => {
        if (isMissing(error)) return undefined;
        throw error;
      }),
    );
    if (head === undefined) return undefined;
    return {
      name,
      sizeBytes: head.ContentLength ?? 0,
      read: (start, end, pieceBytes) =>
        this.read(name, start, Math.min(end, head.ContentLength ?? 0), pieceBytes),
      close: async () => {},
    };
  }

  async *list(prefix: string): AsyncGenerator<ListedBlob> {
    const cut = this.url.prefix === '' ? 0 : this.url.prefix.length + 1;
    for (let ContinuationToken: string | undefined; ;) {
      const page = await this.call(
        async () =>
          await this.client.send(
            new this.sdk.ListObjectsV2Command({
              Bucket: this.url.bucket,
              Prefix: `${this.keyOf(prefix)}/`,
              ...(ContinuationToken === undefined ? {} : { ContinuationToken }),
            }),
          ),
      );
      for (const { Key = '', Size = 0, LastModified } of page.Contents ?? []) {
        if (Key.endsWith('/')) continue;
        const ageMs = LastModified === undefined ? 0 : this.now() - LastModified.getTime();
        yield { name: Key.slice(cut), sizeBytes: Size, ageMs };
      }
      ContinuationToken = page.NextContinuationToken;
      if (ContinuationToken === undefined) return;
    }
  }

  async remove(prefix: string): Promise<void> {
    await this.call(async () => await this.client.send(new this.sdk.DeleteObjectCommand(this.at(prefix))));
    let names: string[] = [];
    const removeNames = async (): Promise<void> => {
      if (names.length === 0) return;
      const Delete = { Objects: names.map((name) => ({ Key: this.keyOf(name) })), Quiet: true };
      const { Errors = [] } = await this.call(
        async () =>
          await this.client.send(new this.sdk.DeleteObjectsCommand({ Bucket: this.url.bucket, Delete })),
      );
      const [first] = Errors;
      if (first !== undefined) throw new BlobsAway(`${first.Key} cannot be removed (${first.Code})`);
      names = [];
    };
    for await (const { name } of this.list(prefix)) {
      names.push(name);
      if (names.length === namesInDelete) await removeNames();
    }
    await removeNames();
  }

  async removeUnfinished(olderMs: number): Promise<void> {
    const Bucket = this.url.bucket;
    const Prefix = this.url.prefix === '' ? '' : `${this.url.prefix}/`;
    for (let KeyMarker: string | undefined; ;) {
      const page: S3.ListMultipartUploadsCommandOutput = await this.call(
        async () =>
          await this.client.send(
            new this.sdk.ListMultipartUploadsCommand({
              ...{ Bucket, Prefix, MaxUploads: this.uploadsInPage },
              ...(KeyMarker === undefined ? {} : { KeyMarker }),
            }),
          ),
      );
      for (const { Key, UploadId, Initiated } of page.Uploads ?? []) {
        if (Initiated === undefined || this.now() - Initiated.getTime() <= olderMs) continue;
        await this.call(
          async () =>
            await this.client
              .send(new this.sdk.AbortMultipartUploadCommand({ Bucket, Key, UploadId }))
              .catch((error: unknown) => {
                if (!isMissing(error)) throw error; // it was completed, or another server removed it
              }),
        );
      }
      // Not by the id of the upload, too, which may be gone: more uploads of this key than fit on its page are found the next time.
      KeyMarker = page.NextKeyMarker;
      if (page.IsTruncated !== true || KeyMarker === undefined) return;
    }
  }

  /** By the clock of S3, which the SDK reads in each answer: to a server whose clock is ahead a new upload would look old. */
  private now(): number {
    return Date.now() + this.client.config.systemClockOffset;
  }

  private async putParts(name: string, first: Uint8Array[], rest: AsyncGenerator<Uint8Array>): Promise<void> {
    const at = this.at(name);
    const { UploadId } = await this.call(
      async () =>
        await this.client.send(
          new this.sdk.CreateMultipartUploadCommand({ ...at, ChecksumAlgorithm: 'CRC32' }),
        ),
    );
    try {
      const parts: { PartNumber: number; ETag: string | undefined; ChecksumCRC32: string | undefined }[] = [];
      const underWay = new Set<Promise<void>>();
      let fault: unknown;
      let PartNumber = 0;
      const begin = async (Body: Uint8Array): Promise<void> => {
        if (underWay.size >= partsAtOnce) await Promise.race(underWay);
        if (fault !== undefined) throw fault;
        const number = ++PartNumber;
        const part = this.call(async () => {
          const command = new this.sdk.UploadPartCommand({
            ...at,
            UploadId,
            PartNumber: number,
            Body,
            ChecksumAlgorithm: 'CRC32',
          });
          const { ETag, ChecksumCRC32 } = await this.client.send(command);
          parts.push({ PartNumber: number, ETag, ChecksumCRC32 });
        })
          .catch((error: unknown) => void (fault ??= error))
          .finally(() => underWay.delete(part));
        underWay.add(part);
      };
      for (const piece of first) await begin(piece);
      for await (const piece of rest) await begin(piece);
      await Promise.all(underWay);
      if (fault !== undefined) throw fault;
      parts.sort((a, b) => a.PartNumber - b.PartNumber);
      await this.call(
        async () =>
          await this.client.send(
            new this.sdk.CompleteMultipartUploadCommand({
              ...at,
              UploadId,
              MultipartUpload: { Parts: parts },
            }),
          ),
      );
    } catch (error) {
      // If this fails, removeUnfinished finds it later.
      await this.client.send(new this.sdk.AbortMultipartUploadCommand({ ...at, UploadId })).catch(() => {});
      throw error;
    }
  }

  /** Continues from where it stopped if the stream is interrupted. */
  private async *read(
    name: string,
    start: number,
    end: number,
    pieceBytes: number,
  ): AsyncGenerator<Uint8Array> {
    let position = start;
    for (let cuts = 0; position < end;) {
      const Range = `bytes=${position}-${end - 1}`;
      const object: S3.GetObjectCommandOutput = await this.call(
        async () => await this.client.send(new this.sdk.GetObjectCommand({ ...this.at(name), Range })),
      );
      try {
        for await (const piece of object.Body as AsyncIterable<Uint8Array>) {
          for (let offset = 0; offset < piece.length; offset += pieceBytes) {
            const part = Uint8Array.prototype.slice.call(piece, offset, offset + pieceBytes);
            position += part.length;
            yield part;
          }
        }
        if (position < end) throw new BlobsAway(`The stream of ${name} ended early`);
      } catch (error) {
        if (++cuts > cutsMax)
          throw new BlobsAway(`${name} cannot be read (${(error as Error).message})`, { cause: error });
      }
    }
  }

  private at(name: string): { Bucket: string; Key: string } {
    return { Bucket: this.url.bucket, Key: this.keyOf(name) };
  }

  private keyOf(name: string): string {
    return [...(this.url.prefix === '' ? [] : [this.url.prefix]), ...wordsOf(name)].join('/');
  }

  /** A failure of S3 is temporary, or an operator fixes it: nothing is lost by waiting. */
  private async call<T>(request: () => Promise<T>): Promise<T> {
    for (let attempts = 1; ; attempts++) {
      try {
        return await request();
      } catch (error) {
        const { name, message, $metadata } = error as Error & { $metadata?: { httpStatusCode?: number } };
        if (changedOnTheWay.has(name) && attempts < attemptsMax) continue;
        const status = $metadata?.httpStatusCode === undefined ? '' : `, HTTP ${$metadata.httpStatusCode}`;
        throw new BlobsAway(
          `S3 at ${this.url.endpoint ?? this.url.region} does not answer as it should (${name}${status}: ${message})`,
          {
            cause: error,
          },
        );
      }
    }
  }
}

function isMissing(error: unknown): boolean {
  const { name, $metadata } = error as Error & { $metadata?: { httpStatusCode?: number } };
  return name === 'NotFound' || name === 'NoSuchKey' || $metadata?.httpStatusCode === 404;
}

/** The bytes of a source in parts of equal length, except for the last; digests are computed on the way. */
async function* partsOf(
  source: AsyncIterable<Uint8Array>,
  partBytes: number,
  digester: Digester,
): AsyncGenerator<Uint8Array> {
  let part = Buffer.allocUnsafe(partBytes);
  let filled = 0;
  for await (const piece of source) {
    digester.add(piece);
    for (let offset = 0; offset < piece.length;) {
      const taken = piece.subarray(offset, offset + partBytes - filled);
      part.set(taken, filled);
      filled += taken.length;
      offset += taken.length;
      if (filled < partBytes) continue;
      yield part;
      part = Buffer.allocUnsafe(partBytes);
      filled = 0;
    }
  }
  if (filled > 0) yield part.subarray(0, filled);
}
