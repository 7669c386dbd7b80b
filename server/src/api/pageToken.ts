import { createHmac, timingSafeEqual } from 'node:crypto';
import { ServiceError } from '../errors.js';
import type { FieldChecks } from './fieldChecks.js';

const version = 1;
const macBytes = 16;

/** Writes and reads page tokens: a place in a list, sealed together with the request that it belongs to. */
export class PageTokens {
  constructor(private readonly key: Uint8Array) {}

  /** `request` is all that must stay the same from page to page. Null, at the end, gives the empty token. */
  write(request: unknown, place: object | null): string {
    if (place === null) return '';
    const body = Buffer.concat([Buffer.from([version]), Buffer.from(JSON.stringify(place))]);
    return Buffer.concat([this.mac(request, body), body]).toString('base64url');
  }

  /** The place, or null for the first page; throws PAGE_TOKEN_INVALID for what this server did not write for this request. */
  read<Place>(request: unknown, token: string): Place | null {
    if (token === '') return null;
    const place = this.open<Place>(request, token, 4096);
    if (place === undefined) throw new ServiceError('PAGE_TOKEN_INVALID', {});
    return place;
  }

  /** The same without an error: undefined for what this server did not write for this request. */
  open<Place>(request: unknown, token: string, lengthMax: number): Place | undefined {
    if (token.length > lengthMax) return undefined;
    const bytes = Buffer.from(token, 'base64url');
    const body = bytes.subarray(macBytes);
    const isOurs =
      bytes.length > macBytes + 1 && timingSafeEqual(bytes.subarray(0, macBytes), this.mac(request, body));
    // Base64 has several spellings of the same bytes; only the one that we gave counts.
    if (!isOurs || body[0] !== version || bytes.toString('base64url') !== token) return undefined;
    return JSON.parse(body.subarray(1).toString('utf8')) as Place;
  }

  private mac(request: unknown, body: Uint8Array): Buffer {
    return createHmac('sha256', this.key)
      .update(`${JSON.stringify(request)}\n`)
      .update(body)
      .digest()
      .subarray(0, macBytes);
  }
}

/** Entries in a page: 0 for 50; what is too much becomes 500, as AIP-158 has it; less than 0 is a mistake. */
export function parsePageSize(checks: FieldChecks, pageSize: number): number {
  if (pageSize < 0) checks.add('page_size', 'a whole number from 0 to 500', pageSize);
  return pageSize <= 0 ? 50 : Math.min(500, pageSize);
}
