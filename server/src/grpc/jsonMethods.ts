import {
  createFileRegistry,
  fromBinary,
  fromJson,
  toBinary,
  toJson,
  type DescMethod,
  type FileRegistry,
  type JsonValue,
} from '@bufbuild/protobuf';
import { FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import { ServiceError } from '../errors.js';

/** A method with messages in JSON. */
export interface JsonMethod {
  /** For example `/relora.v1.TrainingService/GetJob`. */
  readonly path: string;
  readonly responseStream: boolean;
  /** The request as the bytes that a gRPC client would send. Throws REQUEST_INVALID. */
  read(json: JsonValue): Buffer;
  /** An answer as JSON; fields without presence are always written, even if zero. */
  write(bytes: Uint8Array): JsonValue;
}

/**
 * The methods of the contract with messages in protobuf's JSON form. They convert to and from the bytes of gRPC, so that checks, handlers
 * and errors are the same for both. Methods with a stream of requests are left out.
 */
export function jsonMethods(descriptors: Uint8Array, services: readonly string[]): Map<string, JsonMethod> {
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, descriptors));
  const methods = services.flatMap((name) => registry.getService(name)?.methods ?? []);
  return new Map(
    methods
      .filter(({ methodKind }) => methodKind === 'unary' || methodKind === 'server_streaming')
      .map((method) => toJsonMethod(method, registry))
      .map((method) => [method.path, method]),
  );
}

/** Writes messages of one type as JSON, from their bytes. */
export function jsonWriter(descriptors: Uint8Array, typeName: string): (bytes: Uint8Array) => JsonValue {
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, descriptors));
  const type = registry.getMessage(typeName)!;
  return (bytes) => toJson(type, fromBinary(type, bytes), { registry, alwaysEmitImplicit: true });
}

function toJsonMethod(method: DescMethod, registry: FileRegistry): JsonMethod {
  const { input, output, parent, name, methodKind } = method;
  return {
    path: `/${parent.typeName}/${name}`,
    responseStream: methodKind === 'server_streaming',
    read(json) {
      try {
        return Buffer.from(toBinary(input, fromJson(input, json, { registry })));
      } catch (error) {
        throw invalid(input.name, error);
      }
    },
    write: (bytes) => toJson(output, fromBinary(output, bytes), { registry, alwaysEmitImplicit: true }),
  };
}

/** The library's messages name the type or field, for example `cannot decode field relora.v1.JobSpec.step_count from JSON: …`. */
function invalid(typeName: string, error: unknown): ServiceError {
  const message = error instanceof Error ? error.message : String(error);
  const [, kind, name = '', rest = message] =
    /^cannot decode (message|enum|field) (\S+) from JSON: (.*)$/s.exec(message) ?? [];
  const [, unknown] = /^key "(.*)" is unknown$/s.exec(rest) ?? [];
  const field = unknown ?? (kind === 'field' ? name.split('.').at(-1)! : 'request');
  const expected =
    unknown !== undefined
      ? `a field of ${name}`
      : kind === 'enum'
        ? `a word of ${name}`
        : `a ${typeName} as JSON`;
  const got = unknown === undefined ? rest.slice(0, 200) : 'a name that is none';
  return new ServiceError('REQUEST_INVALID', { problems: [{ field, expected, got }] });
}
