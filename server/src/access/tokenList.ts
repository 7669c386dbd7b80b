import type { Logger } from 'pino';
import { ServiceError } from '../errors.js';
import type { Principal } from './principal.js';
import { WatchedFile } from '../watchedFile.js';
import { hashOf, readTokenFile, type StoredToken } from './tokenFile.js';

interface Held extends StoredToken {
  /** Aborted when it is no longer in the file. */
  readonly revoked: AbortController;
}

/** The tokens that hold now: what the file says, read again whenever it changes. */
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
    // One that cannot be used changes nothing: who is in stays in, who is out stays out.
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

  /** Whose token it is. Throws NOT_AUTHENTICATED. */
  find(token: string): Principal {
    // Looked up by its hash: how long that takes says nothing about a token.
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
        // Another role or tenant is another token to calls that are open.
        const isSame = known !== undefined && known.tenant === token.tenant && known.role === token.role;
        return [token.sha256, { ...token, revoked: isSame ? known.revoked : new AbortController() }];
      }),
    );
    for (const [hash, { revoked }] of before)
      if (this.byHash.get(hash)?.revoked !== revoked)
        revoked.abort(new ServiceError('NOT_AUTHENTICATED', { cause: 'its token was revoked or changed' }));
  }
}
