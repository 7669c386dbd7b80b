import { status as Status } from '@grpc/grpc-js';
import { quote } from '../errors.js';
import type { Descriptors, FileDescriptor } from './descriptors.js';

/** A request as proto-loader reads it: exactly one field is set. */
interface ReflectionRequest {
  fileByFilename?: string;
  fileContainingSymbol?: string;
  fileContainingExtension?: { containingType: string };
  allExtensionNumbersOfType?: string;
  listServices?: string;
}

/** Handlers through which tools such as grpcurl read the contract from the server, the same for reflection v1 and v1alpha. */
export function reflectionHandlers({ files }: Descriptors, serviceNames: readonly string[]) {
  const byName = new Map(files.map((file) => [file.name, file]));
  const bySymbol = new Map(files.flatMap((file) => file.symbols.map((symbol) => [symbol, file] as const)));

  const answer = (request: ReflectionRequest): object => {
    if (request.listServices !== undefined)
      return { listServicesResponse: { service: serviceNames.map((name) => ({ name })) } };
    if (request.fileByFilename !== undefined)
      return fileAnswer(byName.get(request.fileByFilename), 'file', request.fileByFilename);
    if (request.fileContainingSymbol !== undefined)
      return fileAnswer(bySymbol.get(request.fileContainingSymbol), 'symbol', request.fileContainingSymbol);
    // The contract has no extensions.
    const extended = request.fileContainingExtension?.containingType ?? request.allExtensionNumbersOfType;
    if (extended !== undefined) return fileAnswer(undefined, 'extension', extended);
    return errorAnswer(Status.INVALID_ARGUMENT, 'The request asks for nothing that is known');
  };

  return {
    /** The next request is read only after the client took the answer, which may be a thousand times as long. */
    ServerReflectionInfo: async function* (
      requests: AsyncIterable<ReflectionRequest>,
    ): AsyncGenerator<object, void, undefined> {
      for await (const request of requests) yield { originalRequest: request, ...answer(request) };
    },
  };
}

function fileAnswer(file: FileDescriptor | undefined, kind: string, name: string): object {
  if (file === undefined) return errorAnswer(Status.NOT_FOUND, `The ${kind} ${quote(name)} is not found`);
  return { fileDescriptorResponse: { fileDescriptorProto: [file.bytes] } };
}

function errorAnswer(errorCode: number, errorMessage: string): object {
  return { errorResponse: { errorCode, errorMessage } };
}
