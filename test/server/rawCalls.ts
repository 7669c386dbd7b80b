import { connect, constants, type ClientHttp2Session, type ClientHttp2Stream } from 'node:http2';
import { Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { onTestFinished } from 'vitest';
import { patienceMs } from '../patience.mjs';

const pass = (bytes: Buffer): Buffer => bytes;

/** A client that sends and receives bytes, with default options of grpc-js. */
export function rawClient(address: string): Client {
  const client = new Client(address, credentials.createInsecure());
  onTestFinished(() => client.close());
  return client;
}

/** How a call with these bytes as its only message ends: the answers, or the error. */
export async function rawCall(
  client: Client,
  path: string,
  bytes: Buffer,
  { metadata = new Metadata(), deadlineMs = patienceMs } = {},
): Promise<{ answers: Buffer[]; error?: ServiceError }> {
  const stream = client.makeBidiStreamRequest<Buffer, Buffer>(path, pass, pass, metadata, {
    deadline: Date.now() + deadlineMs,
  });
  const answers: Buffer[] = [];
  stream.write(bytes);
  stream.end();
  return await new Promise((resolve) => {
    stream.on('data', (answer: Buffer) => answers.push(answer));
    stream.on('error', (error: ServiceError) => resolve({ answers, error }));
    stream.on('end', () => resolve({ answers }));
  });
}

/** A connection on which the test writes the frames; closed after the test. */
export async function rawSession(address: string): Promise<ClientHttp2Session> {
  const session = connect(`http://${address}`);
  session.on('error', () => {});
  onTestFinished(() => session.destroy());
  await new Promise<void>((resolve, reject) => {
    session.once('connect', () => resolve());
    session.once('error', reject);
  });
  return session;
}

/** Begins a call without sending any of its request. */
export function beginCall(
  session: ClientHttp2Session,
  path: string,
  headers: Record<string, string> = {},
): ClientHttp2Stream {
  const stream = session.request(
    { ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers', ...headers },
    { endStream: false },
  );
  stream.on('error', () => {});
  return stream;
}

/** Trailers of a call, wherever they are; undefined if the stream ends without. */
export async function statusOf(
  stream: ClientHttp2Stream,
): Promise<{ code: number; message: string; details: Buffer } | undefined> {
  return await new Promise((resolve) => {
    const take = (headers: Record<string, unknown>): void => {
      if (headers['grpc-status'] === undefined) return;
      resolve({
        code: Number(headers['grpc-status']),
        message: decodeURI(String(headers['grpc-message'] ?? '')),
        details: Buffer.from(String(headers['grpc-status-details-bin'] ?? ''), 'base64'),
      });
    };
    stream.on('response', take);
    stream.on('trailers', take);
    stream.on('close', () => resolve(undefined));
    stream.resume();
  });
}

/** A message in wire format. */
export function framed(bytes: Uint8Array, isCompressed = false): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(isCompressed ? 1 : 0, 0);
  head.writeUInt32BE(bytes.length, 1);
  return Buffer.concat([head, bytes]);
}

export const { NGHTTP2_CANCEL } = constants;
