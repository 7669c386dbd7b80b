import type { IncomingMessage } from 'node:http';
import { isIP } from 'node:net';

export interface GuardOptions {
  /** Names under which the page is reached, in addition to addresses and localhost. */
  hosts: readonly string[];
}

/**
 * What is wrong with a request that another site's page may have sent from a user's browser; undefined if nothing. Such a page can address
 * this server by IP address, but then `Origin` shows it; or it can point a host name of its own to this server, but then `Host` shows it.
 * Programs send neither.
 */
export function foreignPart(
  { headers }: Pick<IncomingMessage, 'headers'>,
  { hosts }: GuardOptions,
): string | undefined {
  const host = hostOf(headers.host);
  if (host === undefined || !isKnown(host.hostname, hosts))
    return `Host ${headers.host ?? ''} is not known here: RELORA_PAGE_HOSTS can name it`;
  const site = headers['sec-fetch-site'];
  if (site !== undefined && site !== 'same-origin' && site !== 'none')
    return 'The request comes from the page of another site';
  const { origin } = headers;
  if (origin !== undefined && hostOf(origin.replace(/^https?:\/\//, ''))?.host !== host.host)
    return `The request comes from ${origin}, which is another site`;
  return undefined;
}

function hostOf(text: string | undefined): { host: string; hostname: string } | undefined {
  if (text === undefined || !URL.canParse(`http://${text}`)) return undefined;
  const { host, hostname, username, pathname } = new URL(`http://${text}`);
  return username === '' && pathname === '/' ? { host, hostname } : undefined;
}

/** No site owns an address, and `localhost` is never resolved to another machine. */
function isKnown(name: string, hosts: readonly string[]): boolean {
  const bare = name.replace(/^\[(.*)\]$/, '$1');
  return isIP(bare) !== 0 || name === 'localhost' || name.endsWith('.localhost') || hosts.includes(name);
}
