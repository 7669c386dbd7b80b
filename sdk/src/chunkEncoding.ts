import { BinaryWriter, WireType, type BinaryReader } from '@bufbuild/protobuf/wire';
import { UploadDatasetChunk } from './contract.js';

interface UploadRequest {
  /** Alike in every upload, with its fields under the same numbers. */
  chunk?: UploadDatasetChunk | undefined;
}

interface Codec<T> {
  encode(message: T, writer?: BinaryWriter): BinaryWriter;
  decode(input: BinaryReader | Uint8Array, length?: number): T;
}

interface Definition {
  readonly methods: Readonly<Record<string, { requestStream: boolean; requestType: object }>>;
}

/** Numbers of the fields `chunk` of a request and `data` of a chunk, in every kind of upload. */
const [chunkField, dataField] = [2, 3];

/**
 * Encodes requests of an upload as the generated code does, but copies the bytes of a chunk once instead of five times: they are most of
 * what is sent.
 */
export function copyingOnce<T extends UploadRequest, Request extends Codec<T>>(request: Request): Request {
  const encode = (message: T, writer?: BinaryWriter): BinaryWriter => {
    const { chunk } = message;
    if (chunk === undefined) return request.encode(message, writer);
    const { data } = chunk;
    const inside = UploadDatasetChunk.encode({ ...chunk, data: Buffer.alloc(0) })
      .tag(dataField, WireType.LengthDelimited)
      .uint32(data.length)
      .finish();
    const before = new BinaryWriter()
      .tag(chunkField, WireType.LengthDelimited)
      .uint32(inside.length + data.length)
      .raw(inside)
      .finish();
    const bytes = new Uint8Array(before.length + data.length);
    bytes.set(before);
    bytes.set(data, before.length);
    // nice-grpc hands it to Buffer.from, which copies an array and shares what is under it.
    return { finish: () => bytes.buffer } as unknown as BinaryWriter;
  };
  return { ...request, encode };
}

/** A service whose uploads are encoded so. */
export function withChunksCopiedOnce<Service extends Definition>(service: Service): Service {
  const methods = Object.entries(service.methods).map(([name, method]) => [
    name,
    method.requestStream
      ? { ...method, requestType: copyingOnce(method.requestType as Codec<UploadRequest>) }
      : method,
  ]);
  return { ...service, methods: Object.fromEntries(methods) as Service['methods'] };
}
