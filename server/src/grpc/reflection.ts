import { readFileSync } from 'node:fs';
import type { Server } from 'nice-grpc';
import { ServerReflection, ServerReflectionService } from 'nice-grpc-server-reflection';
import { standardFiles } from './standardFiles.js';

const contractFile = new URL('../../src/generated/relora.binpb', import.meta.url);

/** Reflection v1alpha has the messages of v1 under another path; older tools know only this one. */
const v1alphaService = {
  serverReflectionInfo: {
    ...ServerReflectionService.serverReflectionInfo,
    path: '/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo',
  },
};

/** Lets tools such as grpcurl ask the server for its contract, by reflection v1 and v1alpha. */
export function addReflection(server: Pick<Server, 'add'>, serviceNames: readonly string[]): void {
  const files = Buffer.concat([readFileSync(contractFile), standardFiles()]);
  const implementation = ServerReflection(files, [
    ...serviceNames,
    'grpc.reflection.v1.ServerReflection',
    'grpc.reflection.v1alpha.ServerReflection',
  ]);
  server.add(ServerReflectionService, implementation);
  server.add(v1alphaService, implementation);
}
