import type { IncomingMessage, ServerResponse } from 'node:http';
import { TLSSocket } from 'node:tls';
import { requireRole, type Authenticate, type Credentials } from '../access/principal.js';
import { certificateNames } from '../certificates.js';
import { isJson, onlyJson, readJson } from './readJson.js';
import { sendWhole } from './send.js';

const cookieName = 'relora-token';
const tokenBytesMax = 16_384;

/** The credentials in a request, for `authenticate`. A browser has its token in a cookie. */
export function credentialsOf({ headers, socket }: IncomingMessage): Credentials {
  const { authorization, 'relora-tenant': tenant } = headers;
  const token = authorization === undefined ? cookieOf(headers.cookie) : undefined;
  return {
    authorization: token === undefined ? authorization : `Bearer ${token}`,
    tenant: Array.isArray(tenant) ? tenant[0] : tenant,
    certificate: socket instanceof TLSSocket ? certificateNames(socket) : undefined,
  };
}

function cookieOf(cookies: string | undefined): string | undefined {
  const found = (cookies ?? '').split(/; */).find((each) => each.startsWith(`${cookieName}=`));
  if (found === undefined) return undefined;
  const value = found.slice(cookieName.length + 1);
  try {
    return decodeURIComponent(value);
  } catch {
    return value; // not one of our tokens: the caller gets an error for it
  }
}

/**
 * Login of a browser at /api/session: GET returns the caller, POST takes a token, DELETE forgets it. The token itself is the session, in a
 * cookie that scripts cannot read and that requests from other sites do not include.
 */
export async function answerSession(
  request: IncomingMessage,
  response: ServerResponse,
  authenticate: Authenticate,
): Promise<void> {
  const { method } = request;
  const cookie = (value: string, seconds: number): string => {
    // Behind a proxy, what counts is the browser's connection.
    const isSecure = request.socket instanceof TLSSocket || request.headers['x-forwarded-proto'] === 'https';
    return `${cookieName}=${value}; Path=/api; HttpOnly; SameSite=Strict; Max-Age=${seconds}${isSecure ? '; Secure' : ''}`;
  };
  if (method === 'GET' || method === 'HEAD')
    return sendWhole(request, response, {
      status: 200,
      json: await describe(authenticate, credentialsOf(request)),
    });
  if (method === 'DELETE')
    return sendWhole(request, response, { status: 200, json: {}, headers: { 'set-cookie': cookie('', 0) } });
  if (method !== 'POST')
    return sendWhole(request, response, {
      status: 405,
      text: 'Only GET, POST and DELETE\n',
      headers: { allow: 'GET, POST, DELETE' },
    });
  if (!isJson(request)) return sendWhole(request, response, onlyJson);
  const body = await readJson(request, tokenBytesMax);
  const token = typeof body === 'object' && body !== null && 'token' in body ? String(body.token).trim() : '';
  const json = await describe(authenticate, { authorization: `Bearer ${token}` });
  const thirtyDays = 30 * 86_400;
  sendWhole(request, response, {
    status: 200,
    json,
    headers: { 'set-cookie': cookie(encodeURIComponent(token), thirtyDays) },
  });
}

/** Rejects with NOT_AUTHENTICATED. */
async function describe(authenticate: Authenticate, credentials: Credentials): Promise<object> {
  const caller = await authenticate(credentials);
  requireRole(caller, 'viewer', 'the page');
  const { name, tenant, role } = caller;
  return { name, tenant, role };
}
