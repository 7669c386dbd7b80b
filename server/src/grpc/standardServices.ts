import { createRequire } from 'node:module';
import type { ServiceDefinition } from '@grpc/grpc-js';
import { fromJSON, loadSync, type PackageDefinition } from '@grpc/proto-loader';
import type { ServedMethod } from './service.js';

/** The wire contract of grpc.health.v1, as the gRPC project defines it. */
const health: unknown = {
  nested: {
    grpc: {
      nested: {
        health: {
          nested: {
            v1: {
              nested: {
                HealthCheckRequest: { fields: { service: { type: 'string', id: 1 } } },
                HealthCheckResponse: {
                  fields: { status: { type: 'ServingStatus', id: 1 } },
                  nested: {
                    ServingStatus: { values: { UNKNOWN: 0, SERVING: 1, NOT_SERVING: 2, SERVICE_UNKNOWN: 3 } },
                  },
                },
                Health: {
                  methods: {
                    Check: { requestType: 'HealthCheckRequest', responseType: 'HealthCheckResponse' },
                    Watch: {
                      requestType: 'HealthCheckRequest',
                      responseType: 'HealthCheckResponse',
                      responseStream: true,
                    },
                  },
                },
              },
            },
          },
        },
      },
    },
  },
};

const { resolve } = createRequire(import.meta.url);

const packages = [
  fromJSON(health as Parameters<typeof fromJSON>[0]),
  ...['v1', 'v1alpha'].map((version) =>
    loadSync(resolve(`@grpc/reflection/build/proto/grpc/reflection/${version}/reflection.proto`)),
  ),
];

/** Descriptors of gRPC's own services, health and both reflections, as a serialized FileDescriptorSet. */
export function standardFiles(): Uint8Array {
  return Buffer.concat(packages.flatMap(filesOf).flatMap((file) => [filePrefix(file.length), file]));
}

/** One of gRPC's own services, in the form for grpc-js. */
export function standardService(name: string): ServiceDefinition {
  const service = packages.map((definition) => definition[name]).find((found) => found !== undefined);
  if (service === undefined || 'format' in service) throw new Error(`${name} is not a service`);
  return service;
}

/** The methods of one of gRPC's own services, with a handler for each. */
export function standardMethods(
  serviceName: string,
  handlers: Readonly<Record<string, ServedMethod['handle']>>,
): Omit<ServedMethod, 'limit'>[] {
  return Object.entries(standardService(serviceName)).map(([name, method]) => ({
    path: method.path,
    requestStream: method.requestStream,
    responseStream: method.responseStream,
    decode: (bytes) => method.requestDeserialize(bytes) as unknown,
    encode: (message) => method.responseSerialize(message),
    handle: handlers[name]!,
  }));
}

function filesOf(definition: PackageDefinition): Buffer[] {
  const files = Object.values(definition).flatMap((entry) =>
    'fileDescriptorProtos' in entry ? (entry.fileDescriptorProtos as Buffer[]) : [],
  );
  return [...new Map(files.map((file) => [file.toString('latin1'), file])).values()];
}

/** Key of field 1 (`file`, length-delimited) and the length as a varint. */
function filePrefix(byteLength: number): Buffer {
  const bytes = [0x0a];
  for (let rest = byteLength; ; rest >>>= 7) {
    if (rest < 0x80) return Buffer.from([...bytes, rest]);
    bytes.push((rest & 0x7f) | 0x80);
  }
}
