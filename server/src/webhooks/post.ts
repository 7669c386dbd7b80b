import { request as plainRequest } from 'node:http';
import { request as secureRequest } from 'node:https';
import { hostOf, type Reachable } from './reachable.js';
import { isIP } from 'node:net';

export interface PostOptions {
  reachable: Reachable;
  /** For everything: name lookup, connection and answer. */
  timeoutMs: number;
  /** Certificate authorities of receivers in PEM, in addition to the usual ones. */
  ca: string[] | undefined;
  signal: AbortSignal;
}

export interface PostResult {
  /** 0 if there was no answer. */
  statusCode: number;
  /** Empty if the message was accepted. */
  failure: string;
}

/** Limit of what is read of an answer, which is ignored. */
const answerBytesMax = 65_536;

/**
 * Posts a message once. Any status from 200 to 299 means that it was accepted. Redirects are not followed, because they would bypass the
 * checks of the address. The receiver's answer is not passed on: otherwise a tenant could read answers from a network that only the server
 * reaches.
 */
export async function post(
  url: URL,
  headers: Readonly<Record<string, string>>,
  body: string,
  { reachable, timeoutMs, ca, signal }: PostOptions,
): Promise<PostResult> {
  const problem = reachable.problemOf(url);
  if (problem !== undefined) return { statusCode: 0, failure: `The address is refused: expected ${problem}` };
  const timeout = AbortSignal.timeout(timeoutMs);
  try {
    const statusCode = await new Promise<number>((resolve, reject) => {
      const send = url.protocol === 'https:' ? secureRequest : plainRequest;
      const request = send(url, {
        method: 'POST',
        headers: {
          ...headers,
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(body),
        },
        // A new connection: one from a pool could have been made before the name was looked up and checked.
        agent: false,
        lookup: reachable.lookup,
        signal: AbortSignal.any([timeout, signal]),
        ...(ca === undefined ? {} : { ca }),
        ...(isIP(hostOf(url)) === 0 ? { servername: hostOf(url) } : {}),
      });
      request.on('error', reject);
      request.on('response', (response) => {
        let bytes = 0;
        response.on('data', (chunk: Buffer) => {
          bytes += chunk.length;
          if (bytes > answerBytesMax) response.destroy();
        });
        response.on('error', () => {});
        response.on('close', () =>
          // An endless answer is cut by the time limit; its status still counts.
          resolve(response.statusCode ?? 0),
        );
      });
      request.end(body);
    });
    const isTaken = statusCode >= 200 && statusCode < 300;
    const isRedirect = statusCode >= 300 && statusCode < 400;
    const failure = `The receiver answered ${statusCode}${isRedirect ? '; redirects are not followed' : ''}`;
    return { statusCode, failure: isTaken ? '' : failure };
  } catch (error) {
    if (timeout.aborted) return { statusCode: 0, failure: `No answer within ${timeoutMs / 1000} s` };
    return { statusCode: 0, failure: failureOf(error) };
  }
}

/** Without the resolved address, which Node puts into its messages. */
function failureOf(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'ADDRESS_REFUSED') return `The address is refused: ${message}`;
  return `The connection failed: ${code ?? 'unknown'}`;
}
