import { isLoopback, type Config } from '../config.js';
import { WebApi, type WebApiParts } from './api.js';
import type { WebRoute } from './httpServer.js';
import { PageFiles } from './pageFiles.js';
import { foreignPart } from './requestGuard.js';
import { sendWhole } from './send.js';

/** Whether the page is served: by default only if no other machine can reach the port. */
export function hasPage({ page, httpAddress }: Pick<Config, 'page' | 'httpAddress'>): boolean {
  return page === 'auto' ? isLoopback(httpAddress.host) : page === 'on';
}

/** The page and its API on the HTTP port. */
export function pageRoute(parts: WebApiParts, hosts: readonly string[]): WebRoute {
  const files = new PageFiles();
  const api = new WebApi(parts);
  return async (request, response, url) => {
    if (!url.pathname.startsWith('/api/')) return files.answer(request, response, url.pathname);
    const foreign = foreignPart(request, { hosts });
    if (foreign !== undefined) sendWhole(request, response, { status: 403, text: `${foreign}\n` });
    else await api.answer(request, response, url);
    return true;
  };
}
