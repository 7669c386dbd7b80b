import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from 'node:http';

export interface Answer {
  status: number;
  headers?: OutgoingHttpHeaders;
  contentType?: string;
  text?: string;
  json?: unknown;
}

/** Time from the first byte of an answer to the last: a slower client does not read. */
export const answerMs = 10_000;

/** Sends a complete answer. */
export function sendWhole(
  request: IncomingMessage,
  response: ServerResponse,
  { status, headers, contentType, text = '', json }: Answer,
): void {
  const body = json === undefined ? text : JSON.stringify(json);
  response.writeHead(status, {
    'content-type': contentType ?? (json === undefined ? 'text/plain; charset=utf-8' : 'application/json'),
    'content-length': Buffer.byteLength(body),
    'cache-control': 'no-store',
    'x-content-type-options': 'nosniff',
    ...headers,
  });
  const timer = setTimeout(() => request.socket.destroy(), answerMs);
  response.once('close', () => clearTimeout(timer));
  response.end(request.method === 'HEAD' ? undefined : body);
}
