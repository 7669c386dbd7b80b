import { createHmac, timingSafeEqual } from 'node:crypto';
import { ServiceError } from '../errors.js';
import type { FieldChecks } from './fieldChecks.js';

const version = 1;
const macBytes = 16;

/** Writes and reads page tokens: a place in a list, sealed together with the request that it belongs to. */
export class PageTokens {
  constructor(private readonly key: Uint8Array) {}

  /** `request` is everything that must stay the same from page to page. A null place, the end of the list, gives the empty token. */
  write(request: unknown, place: object | null): string {
    if (place === null) return '';
    const body = Buffer.concat([Buffer.from([version]), Buffer.from(JSON.stringify(place))]);
    return Buffer.concat([this.mac(request, body), body]).toString('base64url');
  }

  /** The place, or null for the first page; throws PAGE_TOKEN_INVALID unless this server wrote the token for this request. */
  read<Place>(request: unknown, token: string): Place | null {
    if (token === '') return null;
    const place = this.open<Place>(request, token, 4096);
    if (place === undefined) throw new ServiceError('PAGE_TOKEN_INVALID', {});
    return place;
  }

  /** Like `read`, but returns undefined instead of throwing. */
  open<Place>(request: unknown, token: string, lengthMax: number): Place | undefined {
    if (token.length > lengthMax) return undefined;
    const bytes = Buffer.from(token, 'base64url');
    const body = bytes.subarray(macBytes);
    const isOurs =
      bytes.length > macBytes + 1 && timingSafeEqual(bytes.subarray(0, macBytes), this.mac(request, body));
    // Base64 can spell the same bytes in several ways; only the spelling that we wrote is valid.
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

/** Entries per page: 0 means 50, more than 500 becomes 500, as AIP-158 has it; a negative number is an error. */
export function parsePageSize(checks: FieldChecks, pageSize: number): number {
  if (pageSize < 0) checks.add('page_size', 'a whole number from 0 to 500', pageSize);
  return pageSize <= 0 ? 50 : Math.min(500, pageSize);
}
