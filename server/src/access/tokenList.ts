import type { Logger } from 'pino';
import { ServiceError } from '../errors.js';
import type { Principal } from './principal.js';
import { WatchedFile } from '../watchedFile.js';
import { hashOf, readTokenFile, type StoredToken } from './tokenFile.js';

interface Held extends StoredToken {
  /** Aborted when it is no longer in the file. */
  readonly revoked: AbortController;
}

/** The valid tokens: the content of the file, read again whenever it changes. */
export class TokenList {
  private byHash = new Map<string, Held>();
  private file: WatchedFile | undefined;

  private constructor() {}

  /** Throws TokenFileInvalid. */
  static async open(path: string, log: Logger): Promise<TokenList> {
    const list = new TokenList();
    const read = async (): Promise<void> => {
      list.put(await readTokenFile(path));
      log.info({ tokenFile: path, tokens: list.byHash.size }, 'Tokens were read');
    };
    // An unusable file changes nothing: the previous tokens stay valid, and no others.
    list.file = await WatchedFile.open(path, read, (error) =>
      log.error({ err: error }, 'The token file cannot be used; the previous tokens stay valid'),
    );
    if (list.byHash.size === 0)
      log.warn({ tokenFile: path }, 'There are no tokens: every call is refused until one is added');
    return list;
  }

  close(): void {
    this.file?.close();
  }

  /** The caller that a token belongs to. Throws NOT_AUTHENTICATED. */
  find(token: string): Principal {
    // Looked up by its hash, so that the duration reveals nothing about a token.
    const held = this.byHash.get(hashOf(token));
    if (held === undefined)
      throw new ServiceError('NOT_AUTHENTICATED', { cause: 'its token is not known, or was revoked' });
    const { name, tenant, role, expireTimeMs, revoked } = held;
    if (expireTimeMs !== null && expireTimeMs <= Date.now())
      throw new ServiceError('NOT_AUTHENTICATED', {
        cause: `its token expired at ${new Date(expireTimeMs).toISOString()}`,
      });
    return { name, tenant, role, expireTimeMs, revoked: revoked.signal };
  }

  /** Reads the file now if it has changed. */
  async look(): Promise<void> {
    await this.file?.look();
  }

  private put(tokens: readonly StoredToken[]): void {
    const before = this.byHash;
    this.byHash = new Map(
      tokens.map((token) => {
        const known = before.get(token.sha256);
        // For open calls, a token with another role or tenant is another token.
        const isSame = known !== undefined && known.tenant === token.tenant && known.role === token.role;
        return [token.sha256, { ...token, revoked: isSame ? known.revoked : new AbortController() }];
      }),
    );
    for (const [hash, { revoked }] of before)
      if (this.byHash.get(hash)?.revoked !== revoked)
        revoked.abort(new ServiceError('NOT_AUTHENTICATED', { cause: 'its token was revoked or changed' }));
  }
}
