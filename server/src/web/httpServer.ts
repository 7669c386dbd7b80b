import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { Server as TlsServer } from 'node:tls';
import type { Logger } from 'pino';
import { metricsOfTenant } from '../metrics/ofTenant.js';
import { requireRole, type Authenticate } from '../access/principal.js';
import type { Certificates } from '../certificates.js';
import type { Address, Config } from '../config.js';
import { ServiceError } from '../errors.js';
import { Connections, peerOf, type Place } from '../connections.js';
import { answerMs, sendWhole, type Answer } from './send.js';
import { credentialsOf } from './session.js';

/** Whether the server can do its work; `problem` says why not. */
export type Readiness = { ready: true } | { ready: false; problem: string };

export interface WebParts {
  authenticate: Authenticate;
  /** Undefined: unencrypted. */
  certificates?: Certificates | undefined;
  withoutToken: Config['withoutToken'];
  /** All metrics as text. */
  render(): Promise<string>;
  contentType: string;
  readiness(): Promise<Readiness>;
  /** The page and its API, if they are served. */
  page?: WebRoute;
  log: Logger;
}

/** Answers requests other than metrics and health; returns whether it did. */
export type WebRoute = (request: IncomingMessage, response: ServerResponse, url: URL) => Promise<boolean>;

export interface HttpLimits {
  httpConnectionsMax: number;
  spareConnectionsMax: number;
  addressConnectionsMax?: number;
  headerSeconds: number;
  httpHeaderBytesMax?: number;
}

/** How often Node checks for connections whose headers are late; its default is 30 s. */
const lookMs = 500;

/** Serves /metrics, /healthz and /readyz, and the page if it is enabled. */
export class HttpServer {
  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  /** Rejects if the address cannot be bound. */
  static async listen(address: Address, parts: WebParts, limits: HttpLimits): Promise<HttpServer> {
    const { httpConnectionsMax: connectionsMax, headerSeconds } = limits;
    const { spareConnectionsMax, addressConnectionsMax } = limits;
    const connections = new Connections({ connectionsMax, spareConnectionsMax, addressConnectionsMax });
    const limited = {
      ...(limits.httpHeaderBytesMax && { maxHeaderSize: limits.httpHeaderBytesMax }),
      requestTimeout: answerMs,
      headersTimeout: Math.min(answerMs, headerSeconds * 1000),
      connectionsCheckingInterval: lookMs,
      keepAliveTimeout: 5000,
    };
    const serve = (request: IncomingMessage, response: ServerResponse): void => {
      const { place, end } = connections.begin(peerOf(request.socket));
      response.once('close', end);
      answer(request, response, parts, place)
        .catch((error: unknown) => {
          const isRefusal = error instanceof ServiceError;
          if (!isRefusal) parts.log.error({ err: error, path: request.url }, 'An HTTP request failed');
          if (response.headersSent) response.destroy();
          else if (isRefusal) sendWhole(request, response, refusal(error));
          else sendWhole(request, response, { status: 500, text: 'Internal error\n' });
        })
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

function refusal({ reason, message }: ServiceError): Answer {
  if (reason === 'NOT_AUTHENTICATED')
    return { status: 401, text: `${message}\n`, headers: { 'www-authenticate': 'Bearer' } };
  if (reason === 'ROLE_TOO_LOW') return { status: 403, text: `${message}\n` };
  return { status: 400, text: `${message}\n` };
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  parts: WebParts,
  place: Place,
): Promise<void> {
  const send = (result: Answer): void => sendWhole(request, response, result);
  const path = (request.url ?? '').split('?')[0]!;
  const isHealth = path === '/healthz' || path === '/readyz';
  if (!isHealth && place === 'spare')
    return send({ status: 503, text: 'All connections are in use; only health is answered\n' });
  if (!isHealth && path !== '/metrics') {
    const url = URL.canParse(`http://host${request.url}`) ? new URL(`http://host${request.url}`) : undefined;
    if (url !== undefined && (await parts.page?.(request, response, url))) return;
    return send({
      status: 404,
      text: `Not found; there ${parts.page ? 'is the page at /, and there ' : ''}are /metrics, /healthz and /readyz\n`,
    });
  }
  if (request.method !== 'GET' && request.method !== 'HEAD')
    return send({ status: 405, text: 'Only GET and HEAD\n', headers: { allow: 'GET, HEAD' } });
  const part = path === '/metrics' ? 'metrics' : 'health';
  let tenant: string | null = null;
  if (!parts.withoutToken.includes(part)) {
    const caller = await parts.authenticate(credentialsOf(request));
    requireRole(caller, 'viewer', path);
    // An operator sees everything, unless it acts for another tenant.
    if (caller.role !== 'operator') ({ tenant } = caller);
  }
  if (path === '/metrics') {
    const text = await parts.render();
    return send({
      status: 200,
      contentType: parts.contentType,
      text: tenant === null ? text : metricsOfTenant(text, tenant),
    });
  }
  // Alive means that the event loop turns. The store does not matter, because starting the server again would not repair it.
  if (path === '/healthz') return send({ status: 200, text: 'ok\n' });
  const readiness = await parts.readiness();
  return send(
    readiness.ready ? { status: 200, text: 'ready\n' } : { status: 503, text: `${readiness.problem}\n` },
  );
}
