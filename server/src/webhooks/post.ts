import { request as plainRequest } from 'node:http';
import { request as secureRequest } from 'node:https';
import { hostOf, type Reachable } from './reachable.js';
import { isIP } from 'node:net';

export interface PostOptions {
  reachable: Reachable;
  /** For everything: the name, the connection, the answer. */
  timeoutMs: number;
  /** Authorities of receivers in PEM, beside the usual ones. */
  ca: string[] | undefined;
  signal: AbortSignal;
}

export interface PostResult {
  /** 0 where no answer came. */
  statusCode: number;
  /** Empty where the message was taken. */
  failure: string;
}

/** What is read of an answer; nobody looks at it. */
const answerBytesMax = 65_536;

/**
 * Posts a message once. Any status of 200 to 299 says that it was taken; a redirect is not followed, as it would lead past the checks
 * of the address. What a receiver writes is not passed on: the tenant could read answers of a network that only the server reaches.
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
        // A connection of its own: one that is kept could have been made before a name led elsewhere.
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
          // An answer that drips on is cut by the time limit; its status counts all the same.
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

/** Without the address that a name led to, which Node puts into its messages. */
function failureOf(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === 'ADDRESS_REFUSED') return `The address is refused: ${message}`;
  return `The connection failed: ${code ?? 'unknown'}`;
}
