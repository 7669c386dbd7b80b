import { onTestFinished } from 'vitest';
import { openToAll, type Authenticate } from '../../server/dist/access/principal.js';
import { contractMethods } from '../../server/dist/api/serveApi.js';
import { HttpServer } from '../../server/dist/web/httpServer.js';
import { pageRoute } from '../../server/dist/web/pageRoute.js';
import type { Api } from './apiServer.js';

/** Serves the page over an API on an HTTP port; returns its address. */
export async function serveWeb(
  { parts, grpc, authenticate = openToAll }: Pick<Api, 'parts' | 'grpc'> & { authenticate?: Authenticate },
  hosts: string[] = [],
): Promise<string> {
  const { config, log } = parts;
  const server = await HttpServer.listen(
    { host: '127.0.0.1', port: 0 },
    {
      authenticate,
      withoutToken: config.withoutToken,
      render: async () => 'relora_slots 1\n',
      contentType: 'text/plain',
      readiness: async () => ({ ready: true }),
      page: pageRoute(
        {
          methods: contractMethods(),
          call: (path, request, context) => grpc.call(path, request, context),
          authenticate,
          bodyBytesMax: config.messageBytesMax,
          readerSilenceSeconds: config.readerSilenceSeconds,
        },
        hosts,
      ),
      log,
    },
    config,
  );
  onTestFinished(async () => await server.close());
  return `http://127.0.0.1:${server.port}`;
}
