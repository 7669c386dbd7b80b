import type { IncomingMessage } from 'node:http';
import type { JsonValue } from '@bufbuild/protobuf';
import { ServiceError } from '../errors.js';

/** A form on another site can send text, but it cannot send this type without a CORS preflight. */
export function isJson({ headers }: IncomingMessage): boolean {
  return /^application\/json(;|$)/.test(headers['content-type'] ?? '');
}

export const onlyJson = { status: 415, text: 'Only application/json\n' };

/** The body of a request. Throws MESSAGE_TOO_LARGE, REQUEST_INVALID. */
export async function readJson(request: IncomingMessage, bytesMax: number): Promise<JsonValue> {
  const pieces: Buffer[] = [];
  let length = 0;
  for await (const piece of request as AsyncIterable<Buffer>) {
    length += piece.length;
    if (length > bytesMax) throw new ServiceError('MESSAGE_TOO_LARGE', { limit: bytesMax, unit: 'bytes' });
    pieces.push(piece);
  }
  try {
    return JSON.parse(Buffer.concat(pieces).toString('utf8')) as JsonValue;
  } catch (error) {
    const got = error instanceof Error ? error.message : 'something else';
    throw new ServiceError('REQUEST_INVALID', { problems: [{ field: 'request', expected: 'JSON', got }] });
  }
}
