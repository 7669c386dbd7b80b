import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { Server as TlsServer, TLSSocket } from 'node:tls';
import type { Logger } from 'pino';
import { requireRole, type Authenticate, type Credentials } from '../access/principal.js';
import { certificateNames, type Certificates } from '../certificates.js';
import type { Address, Config } from '../config.js';
import { ServiceError } from '../errors.js';
import { Connections, peerOf, type Place } from '../connections.js';

/** Whether the server can do its work; `problem` says why not. */
export type Readiness = { ready: true } | { ready: false; problem: string };

export interface WebParts {
  authenticate: Authenticate;
  /** Undefined: plain text. */
  certificates?: Certificates | undefined;
  withoutToken: Config['withoutToken'];
  /** All metrics as text. */
  render(): Promise<string>;
  contentType: string;
  readiness(): Promise<Readiness>;
  log: Logger;
}

interface Answer {
  status: number;
  contentType?: string;
  text: string;
}

export interface HttpLimits {
  httpConnectionsMax: number;
  spareConnectionsMax: number;
  headerSeconds: number;
}

/** From the headers of a request to the last byte of its answer: nothing here takes long, so who takes longer does not read. */
const answerMs = 10_000;
/** How often Node looks for connections that are late with their headers; 30 s by default. */
const lookMs = 500;

/** Serves /metrics, /healthz and /readyz, and nothing else. */
export class HttpServer {
  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  /** Rejects when the address cannot be had. */
  static async listen(address: Address, parts: WebParts, limits: HttpLimits): Promise<HttpServer> {
    const { httpConnectionsMax: connectionsMax, spareConnectionsMax, headerSeconds } = limits;
    const connections = new Connections({ connectionsMax, spareConnectionsMax });
    const limited = {
      requestTimeout: answerMs,
      headersTimeout: Math.min(answerMs, headerSeconds * 1000),
      connectionsCheckingInterval: lookMs,
      keepAliveTimeout: 5000,
    };
    const serve = (request: IncomingMessage, response: ServerResponse): void => {
      const { place, end } = connections.begin(peerOf(request.socket));
      const timer = setTimeout(() => request.socket.destroy(), answerMs);
      response.once('close', () => {
        clearTimeout(timer);
        end();
      });
      answer(request, parts, place)
        .catch((error: unknown): Answer => {
          if (error instanceof ServiceError) return refusal(error);
          parts.log.error({ err: error, path: request.url }, 'An HTTP request failed');
          return { status: 500, text: 'Internal error\n' };
        })
        .then((result) => send(request, response, result))
        .catch((error: unknown) => parts.log.debug({ err: error }, 'An HTTP answer could not be sent'));
    };
    const { certificates } = parts;
    const server =
      certificates === undefined
        ? createServer(limited, serve)
        : createTlsServer(
            { ...limited, ...certificates.options, handshakeTimeout: headerSeconds * 1000 },
            serve,
          );
    if (server instanceof TlsServer) certificates?.onChange((changed) => server.setSecureContext(changed));
    server.on('connection', (socket) => connections.add(socket));
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(address.port, address.host, () => {
        server.off('error', reject);
        resolve();
      });
    });
    return new HttpServer(server, (server.address() as AddressInfo).port);
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    this.server.closeAllConnections();
    await closed;
  }
}

/** What a request says of its caller; `authenticate` makes a Principal of it. */
export function credentialsOf({ headers, socket }: IncomingMessage): Credentials {
  const { authorization, 'relora-tenant': tenant } = headers;
  const certificate = socket instanceof TLSSocket ? certificateNames(socket) : undefined;
  return { authorization, tenant: Array.isArray(tenant) ? tenant[0] : tenant, certificate };
}

function refusal({ reason, message }: ServiceError): Answer {
  if (reason === 'NOT_AUTHENTICATED') return { status: 401, text: `${message}\n` };
  if (reason === 'ROLE_TOO_LOW') return { status: 403, text: `${message}\n` };
  return { status: 400, text: `${message}\n` };
}

async function answer(request: IncomingMessage, parts: WebParts, place: Place): Promise<Answer> {
  const path = (request.url ?? '').split('?')[0];
  if (path !== '/metrics' && path !== '/healthz' && path !== '/readyz') {
    return { status: 404, text: 'Not found; there are /metrics, /healthz and /readyz\n' };
  }
  if (request.method !== 'GET' && request.method !== 'HEAD')
    return { status: 405, text: 'Only GET and HEAD\n' };
  if (path === '/metrics' && place === 'spare')
    return { status: 503, text: 'All connections are in use; only health is answered\n' };
  const part = path === '/metrics' ? 'metrics' : 'health';
  if (!parts.withoutToken.includes(part)) {
    const caller = await parts.authenticate(credentialsOf(request));
    requireRole(caller, part === 'metrics' ? 'operator' : 'viewer', path);
  }
  if (path === '/metrics') return { status: 200, contentType: parts.contentType, text: await parts.render() };
  // Alive is who can answer: the event loop turns. The store is of no concern, since a restart would not mend it.
  if (path === '/healthz') return { status: 200, text: 'ok\n' };
  const readiness = await parts.readiness();
  return readiness.ready ? { status: 200, text: 'ready\n' } : { status: 503, text: `${readiness.problem}\n` };
}

function send(
  request: IncomingMessage,
  response: ServerResponse,
  { status, contentType = 'text/plain; charset=utf-8', text }: Answer,
): void {
  response.writeHead(status, {
    'content-type': contentType,
    'content-length': Buffer.byteLength(text),
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    ...(status === 401 ? { 'www-authenticate': 'Bearer' } : {}),
    ...(status === 405 ? { allow: 'GET, HEAD' } : {}),
  });
  response.end(request.method === 'HEAD' ? undefined : text);
}
