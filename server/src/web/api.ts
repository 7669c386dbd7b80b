import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Metadata } from '@grpc/grpc-js';
import { DownloadArtifactRequest, DownloadArtifactResponse } from '@relora/sdk/contract';
import { nobody, type Authenticate } from '../access/principal.js';
import { peerOf } from '../connections.js';
import { ServiceError } from '../errors.js';
import type { JsonMethod } from '../grpc/jsonMethods.js';
import type { CallContext } from '../grpc/service.js';
import { errorAnswer } from './errorAnswer.js';
import { isJson, onlyJson, readJson } from './readJson.js';
import { sendWhole } from './send.js';
import { answerSession, credentialsOf } from './session.js';

export interface WebApiParts {
  /** By path. */
  methods: ReadonlyMap<string, JsonMethod>;
  call(path: string, request: Buffer, context: CallContext): AsyncGenerator<Buffer, void, undefined>;
  authenticate: Authenticate;
  bodyBytesMax: number;
  readerSilenceSeconds: number;
}

/** Headers that become metadata of the call. */
const passedHeaders = /^(user-agent|x-request-id|relora-[0-9a-z_.-]+(?<!-bin))$/;
/** Characters that metadata may have. */
const printable = /^[ -~]*$/;

/**
 * The API for a page: every method with a single request as `POST /api/SERVICE/METHOD`, the events of a job as Server-Sent Events, and the
 * files of artifacts by GET. They all call the same methods as over gRPC.
 */
export class WebApi {
  constructor(private readonly parts: WebApiParts) {}

  /** Answers a request below /api/. */
  async answer(request: IncomingMessage, response: ServerResponse, url: URL): Promise<void> {
    const over = new AbortController();
    const end = (error: ServiceError): void => over.abort(error);
    response.once('close', () => end(new ServiceError('CALL_CANCELLED', {})));
    const context: CallContext = {
      metadata: new Metadata(),
      peer: peerOf(request.socket),
      certificate: () => credentialsOf(request).certificate,
      caller: nobody,
      signal: over.signal,
      end,
    };
    try {
      enterMetadata(context.metadata, request);
      if (url.pathname === '/api/session')
        return await answerSession(request, response, this.parts.authenticate);
      const [, jobId, rest] = /^\/api\/jobs\/([^/]+)\/(.+)$/.exec(url.pathname) ?? [];
      if (jobId === undefined)
        return await this.answerCall(request, response, url.pathname.slice('/api'.length), context);
      if (request.method !== 'GET' && request.method !== 'HEAD')
        return refuseMethod(request, response, 'GET, HEAD');
      if (rest === 'events')
        return await this.sendEvents(request, response, jobId, url.searchParams, context);
      const [, artifact, fileName] = /^artifacts\/([^/]+)\/(.+)$/.exec(rest!) ?? [];
      if (artifact === undefined) return sendWhole(request, response, notFound);
      const name = `jobs/${decode(jobId)}/artifacts/${decode(artifact)}`;
      await this.sendFile(request, response, { name, fileName: decode(fileName!) }, context);
    } catch (error) {
      // A call that was ended from inside, for example by a revoked token, has the reason.
      const cause: unknown = over.signal.aborted ? over.signal.reason : error;
      if (!(cause instanceof ServiceError)) throw error;
      const { status, json } = errorAnswer(cause);
      if (response.headersSent || response.destroyed) response.destroy();
      else sendWhole(request, response, { status, json });
    }
  }

  private async answerCall(
    request: IncomingMessage,
    response: ServerResponse,
    path: string,
    context: CallContext,
  ): Promise<void> {
    const method = this.parts.methods.get(path);
    if (method === undefined || method.responseStream) return sendWhole(request, response, notFound);
    if (request.method !== 'POST') return refuseMethod(request, response, 'POST');
    if (!isJson(request)) return sendWhole(request, response, onlyJson);
    const body = method.read(await readJson(request, this.parts.bodyBytesMax));
    for await (const answer of this.parts.call(path, body, context))
      sendWhole(request, response, { status: 200, json: method.write(answer) });
  }

  /** `id` is the sequence number: a client that reconnects with Last-Event-ID gets every event exactly once. */
  private async sendEvents(
    request: IncomingMessage,
    response: ServerResponse,
    jobId: string,
    query: URLSearchParams,
    context: CallContext,
  ): Promise<void> {
    const path = '/relora.v1.TrainingService/WatchJob';
    const method = this.parts.methods.get(path)!;
    const message = method.read({
      name: `jobs/${decode(jobId)}`,
      afterSequence: String(request.headers['last-event-id'] ?? query.get('after_sequence') ?? '0'),
      stepIntervalMs: Number(query.get('step_interval_ms') ?? '0'),
      acceptSpans: query.get('accept_spans') === 'true',
    });
    const begin = (): void => {
      if (response.headersSent) return;
      response.writeHead(200, {
        'content-type': 'text/event-stream',
        'cache-control': 'no-store',
        'x-content-type-options': 'nosniff',
        // Otherwise proxies would buffer the events.
        'x-accel-buffering': 'no',
      });
      response.flushHeaders();
    };
    // Even without news the response begins after this time; refusals come sooner.
    const answers = this.parts.call(path, message, context);
    const begun = setTimeout(begin, 200);
    try {
      for await (const answer of answers) {
        begin();
        const json = method.write(answer) as { event: { sequence: string } };
        await this.write(
          response,
          `id: ${json.event.sequence}\ndata: ${JSON.stringify(json)}\n\n`,
          context.signal,
        );
      }
    } catch (error) {
      // A stream that has begun just ends, as when the server stops; the client reconnects, and then gets the error.
      if (!response.headersSent || context.signal.aborted) throw error;
    } finally {
      clearTimeout(begun);
    }
    begin();
    response.end();
  }

  private async sendFile(
    request: IncomingMessage,
    response: ServerResponse,
    { name, fileName }: { name: string; fileName: string },
    context: CallContext,
  ): Promise<void> {
    const path = '/relora.v1.ArtifactService/DownloadArtifact';
    const [, from] = /^bytes=(\d{1,15})-$/.exec(request.headers.range ?? '') ?? [];
    const offsetBytes = Number(from ?? 0);
    const bytes = DownloadArtifactRequest.encode({ name, fileName, offsetBytes }).finish();
    for await (const answer of this.parts.call(path, Buffer.from(bytes), context)) {
      const { file, data } = DownloadArtifactResponse.decode(answer);
      if (file !== undefined) {
        const { sizeBytes, sha256 } = file;
        response.writeHead(from === undefined ? 200 : 206, {
          'content-type': 'application/octet-stream',
          'content-disposition': `attachment; filename*=UTF-8''${encodeURIComponent(fileName.split('/').at(-1)!)}`,
          'content-length': sizeBytes - offsetBytes,
          ...(from === undefined
            ? {}
            : { 'content-range': `bytes ${offsetBytes}-${sizeBytes - 1}/${sizeBytes}` }),
          'accept-ranges': 'bytes',
          etag: `"${sha256}"`,
          'cache-control': 'no-store',
          'x-content-type-options': 'nosniff',
        });
        if (request.method === 'HEAD') break;
      }
      await this.write(response, data, context.signal);
    }
    response.end();
  }

  /** Waits for a client that does not read, and disconnects it after a while, because it would take a connection from others. */
  private async write(
    response: ServerResponse,
    data: string | Uint8Array,
    signal: AbortSignal,
  ): Promise<void> {
    if (response.write(data)) return;
    const timer = setTimeout(() => response.destroy(), this.parts.readerSilenceSeconds * 1000);
    try {
      await once(response, 'drain', { signal });
    } finally {
      clearTimeout(timer);
    }
  }
}

const notFound = { status: 404, text: 'Not found\n' };

function refuseMethod(request: IncomingMessage, response: ServerResponse, allow: string): void {
  sendWhole(request, response, { status: 405, text: `Only ${allow}\n`, headers: { allow } });
}

/**
 * Throws NOT_AUTHENTICATED and REQUEST_INVALID for headers that HTTP allows and metadata does not; headers that are only for the log are
 * left out instead.
 */
function enterMetadata(metadata: Metadata, request: IncomingMessage): void {
  const { authorization } = credentialsOf(request);
  if (authorization !== undefined) {
    if (!printable.test(authorization))
      throw new ServiceError('NOT_AUTHENTICATED', { cause: 'its authorization is not `Bearer TOKEN`' });
    metadata.set('authorization', authorization);
  }
  for (const [name, value] of Object.entries(request.headers)) {
    if (typeof value !== 'string' || !passedHeaders.test(name)) continue;
    if (printable.test(value)) metadata.set(name, value);
    else if (name.startsWith('relora-'))
      throw new ServiceError('REQUEST_INVALID', {
        problems: [
          { field: name, expected: 'printable characters of ASCII', got: JSON.stringify(value.slice(0, 40)) },
        ],
      });
  }
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
