import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createRequire } from 'node:module';
import { dirname, extname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { sendWhole } from './send.js';

interface PageFile {
  contentType: string;
  bytes: Buffer;
  packed: Buffer;
  etag: string;
}

const contentTypes: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.svg': 'image/svg+xml',
};

/** Nothing is loaded from other sites, scripts cannot insert text as HTML (trusted types), and no other page may frame it. */
const securityHeaders = {
  'content-security-policy': [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
  ].join('; '),
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
  'permissions-policy': 'camera=(), geolocation=(), microphone=()',
};

/** Paths of the page, which interprets them itself: all are answered with its single document. */
const pagePaths = /^\/(?:jobs(?:\/[^/]+)?|compare|queue|datasets(?:\/[^/]+)?|server)?$/;

/** The files of the page, read once: its own, and the library that draws plots. */
export class PageFiles {
  private readonly files = new Map<string, PageFile>();

  constructor() {
    const description = createRequire(import.meta.url).resolve('@relora/page/package.json');
    const page = dirname(description);
    const plots = dirname(createRequire(description).resolve('uplot'));
    for (const folder of [join(page, 'public'), join(page, 'dist')])
      for (const name of readdirSync(folder))
        if (contentTypes[extname(name)] !== undefined) this.add(`/page/${name}`, join(folder, name));
    this.add('/page/uPlot.js', join(plots, 'uPlot.esm.js'));
    this.add('/page/uPlot.css', join(plots, 'uPlot.min.css'));
  }

  /** Answers with a file; returns whether there is one at this path. */
  answer(request: IncomingMessage, response: ServerResponse, path: string): boolean {
    const file = this.files.get(pagePaths.test(path) ? '/page/index.html' : path);
    if (file === undefined) return false;
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      sendWhole(request, response, {
        status: 405,
        text: 'Only GET and HEAD\n',
        headers: { allow: 'GET, HEAD' },
      });
      return true;
    }
    const { contentType, bytes, packed, etag } = file;
    const isPacked = /\bgzip\b/.test(String(request.headers['accept-encoding'] ?? ''));
    const headers = {
      'content-type': contentType,
      // Revalidated each time, so that an upgrade is seen at once; a 304 costs almost nothing.
      'cache-control': 'no-cache',
      vary: 'accept-encoding',
      etag,
      'x-content-type-options': 'nosniff',
      ...securityHeaders,
    };
    if (request.headers['if-none-match'] === etag) response.writeHead(304, headers).end();
    else {
      const body = isPacked ? packed : bytes;
      const encoding = isPacked ? { 'content-encoding': 'gzip' } : {};
      response.writeHead(200, { ...headers, ...encoding, 'content-length': body.length });
      response.end(request.method === 'HEAD' ? undefined : body);
    }
    return true;
  }

  private add(path: string, file: string): void {
    const bytes = readFileSync(file);
    this.files.set(path, {
      contentType: contentTypes[extname(file)]!,
      bytes,
      packed: gzipSync(bytes),
      etag: `"${createHash('sha256').update(bytes).digest('base64url').slice(0, 22)}"`,
    });
  }
}
