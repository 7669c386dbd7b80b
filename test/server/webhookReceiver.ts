import { createHmac, timingSafeEqual } from 'node:crypto';
import { createServer, type IncomingMessage, type RequestListener, type Server } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { onTestFinished } from 'vitest';

export interface Received {
  id: string;
  timestamp: number;
  signature: string;
  body: string;
  path: string;
  message: { type: string; timestamp: string; data: Record<string, unknown> };
}

export interface Receiver {
  url: string;
  port: number;
  received: Received[];
  /** Status of the answer to the next messages; 200 by default. */
  answer: (message: Received) => number | undefined;
  /** Location header of 3xx answers. */
  location: string;
  /** Resolves when the condition holds, checked at each message. */
  until(condition: (received: readonly Received[]) => boolean): Promise<void>;
}

/** A receiver as a user would write it: a local HTTP server. */
export async function startReceiver(tls?: { cert: Buffer; key: Buffer }): Promise<Receiver> {
  const waiting = new Set<() => void>();
  const receiver: Receiver = {
    url: '',
    port: 0,
    received: [],
    answer: () => 200,
    location: '/elsewhere',
    until: async (condition) => {
      while (!condition(receiver.received))
        await new Promise<void>((resolve) => waiting.add(resolve)).finally(() => {});
    },
  };
  const listener: RequestListener = (request, response) => {
    void read(request).then((body) => {
      const header = (name: string) => String(request.headers[name]);
      const message: Received = {
        id: header('webhook-id'),
        timestamp: Number(header('webhook-timestamp')),
        signature: header('webhook-signature'),
        body,
        path: request.url!,
        message: JSON.parse(body) as Received['message'],
      };
      receiver.received.push(message);
      const status = receiver.answer(message);
      if (status !== undefined) response.writeHead(status, { location: receiver.location }).end('seen');
      for (const wake of waiting) wake();
      waiting.clear();
    });
  };
  const server: Server = tls === undefined ? createServer(listener) : createSecureServer(tls, listener);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  receiver.port = (server.address() as AddressInfo).port;
  receiver.url = `${tls === undefined ? 'http' : 'https'}://127.0.0.1:${receiver.port}/hook`;
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  return receiver;
}

async function read(request: IncomingMessage): Promise<string> {
  let body = '';
  for await (const chunk of request) body += String(chunk);
  return body;
}

/** Verification by the specification of Standard Webhooks, implemented independently for the receiver. */
export function isSigned({ id, timestamp, body, signature }: Received, secret: string): boolean {
  const key = Buffer.from(secret.replace('whsec_', ''), 'base64');
  const expected = createHmac('sha256', key).update(`${id}.${timestamp}.${body}`).digest();
  return signature.split(' ').some((part) => {
    const [version, value = ''] = part.split(',');
    const given = Buffer.from(value, 'base64');
    return version === 'v1' && given.length === expected.length && timingSafeEqual(given, expected);
  });
}
