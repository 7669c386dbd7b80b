import { createRequire } from 'node:module';
import { credentials, loadPackageDefinition, type ServiceClientConstructor } from '@grpc/grpc-js';
import { loadFileDescriptorSetFromBuffer, loadSync } from '@grpc/proto-loader';

interface ReflectionAnswer {
  listServicesResponse?: { service: { name: string }[] };
  fileDescriptorResponse?: { fileDescriptorProto: Buffer[] };
  errorResponse?: { errorCode: number; errorMessage: string };
}

export type ReflectionVersion = 'v1' | 'v1alpha';

/** Gets a server's contract by reflection, as grpcurl does: services, the files that define them, and their imports. */
export async function reflect(
  address: string,
  version: ReflectionVersion,
  symbols?: string[],
): Promise<{ serviceNames: string[]; descriptorSet: Buffer }> {
  const file = createRequire(import.meta.url).resolve(
    `@grpc/reflection/build/proto/grpc/reflection/${version}/reflection.proto`,
  );
  const client = makeClient(loadSync(file), `grpc.reflection.${version}.ServerReflection`, address);
  const stream = client.ServerReflectionInfo!();
  const answers = stream[Symbol.asyncIterator]() as AsyncIterator<ReflectionAnswer>;
  const ask = async (request: object): Promise<ReflectionAnswer> => {
    stream.write(request);
    const { value } = await answers.next();
    if (value.errorResponse) throw new Error(value.errorResponse.errorMessage);
    return value;
  };

  const listed = await ask({ listServices: '' });
  const serviceNames = listed.listServicesResponse!.service.map(({ name }) => name);
  const files = new Map<string, Buffer>();
  const add = async (answer: ReflectionAnswer): Promise<void> => {
    for (const bytes of answer.fileDescriptorResponse!.fileDescriptorProto) {
      const { name, dependency } = nameAndImports(bytes);
      if (files.has(name)) continue;
      for (const imported of dependency) {
        if (!files.has(imported)) await add(await ask({ fileByFilename: imported }));
      }
      files.set(name, bytes);
    }
  };
  for (const name of symbols ?? serviceNames) await add(await ask({ fileContainingSymbol: name }));
  stream.end();
  client.close();
  return { serviceNames, descriptorSet: Buffer.concat([...files.values()].map(asEntry)) };
}

/** A client of one service, created only from descriptors. */
export function dynamicClient(descriptorSet: Buffer, serviceName: string, address: string): DynamicClient {
  const options = { longs: String, enums: String, defaults: true, oneofs: true };
  return makeClient(loadFileDescriptorSetFromBuffer(descriptorSet, options), serviceName, address);
}

type Call = NodeJS.ReadWriteStream & AsyncIterable<unknown> & { write(message: object): boolean };
/** Methods by their name in the contract. */
export type DynamicClient = Record<string, (...parameters: unknown[]) => Call> & { close(): void };

/** One call with one request and one answer. */
export async function callOnce<T>(client: DynamicClient, method: string, request: object): Promise<T> {
  return await new Promise<T>((resolve, reject) => {
    client[method]!(request, (error: Error | null, answer: T) => (error ? reject(error) : resolve(answer)));
  });
}

function makeClient(
  definition: ReturnType<typeof loadSync>,
  serviceName: string,
  address: string,
): DynamicClient {
  let found: unknown = loadPackageDefinition(definition);
  for (const part of serviceName.split('.')) found = (found as Record<string, unknown>)[part];
  const Client = found as ServiceClientConstructor;
  return new Client(address, credentials.createInsecure()) as unknown as DynamicClient;
}

/** Fields 1 (name) and 3 (dependency) of a serialized FileDescriptorProto. */
function nameAndImports(bytes: Buffer): { name: string; dependency: string[] } {
  const found: { name: string; dependency: string[] } = { name: '', dependency: [] };
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = bytes[at++]!;
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    if ((key & 7) === 0) {
      varint();
      continue;
    }
    const length = varint();
    const text = bytes.toString('utf8', at, (at += length));
    if (key >> 3 === 1) found.name = text;
    if (key >> 3 === 3) found.dependency.push(text);
  }
  return found;
}

/** A file as an entry of a serialized FileDescriptorSet. */
function asEntry(file: Buffer): Buffer {
  const length: number[] = [];
  for (let rest = file.length; ; rest >>>= 7) {
    if (rest < 0x80) return Buffer.concat([Buffer.from([0x0a, ...length, rest]), file]);
    length.push((rest & 0x7f) | 0x80);
  }
}
