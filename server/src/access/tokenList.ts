import { stat } from 'node:fs/promises';
import type { Logger } from 'pino';
import { ServiceError } from '../errors.js';
import type { Principal } from './principal.js';
import { hashOf, readTokenFile, type StoredToken } from './tokenFile.js';

/** How soon a change of the file holds that this server did not make itself. */
const lookMs = 1000;

interface Held extends StoredToken {
  /** Aborted when it is no longer in the file. */
  readonly revoked: AbortController;
}

/** The tokens that hold now: what the file says, read again whenever it changes. */
export class TokenList {
  private byHash = new Map<string, Held>();
  private stamp = '';
  private timer: NodeJS.Timeout | undefined;

  private constructor(
    private readonly path: string,
    private readonly log: Logger,
  ) {}

  /** Throws TokenFileInvalid. */
  static async open(path: string, log: Logger): Promise<TokenList> {
    const list = new TokenList(path, log);
    list.stamp = await stampOf(path);
    list.put(await readTokenFile(path));
    if (list.byHash.size === 0)
      log.warn({ tokenFile: path }, 'There are no tokens: every call is refused until one is added');
    list.timer = setInterval(() => void list.look(), lookMs).unref();
    return list;
  }

  close(): void {
    clearInterval(this.timer);
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

  /** Reads the file if it has changed. One that cannot be used changes nothing: who is in stays in, who is out stays out. */
  async look(): Promise<void> {
    const stamp = await stampOf(this.path);
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    try {
      this.put(await readTokenFile(this.path));
      this.log.info({ tokenFile: this.path, tokens: this.byHash.size }, 'Tokens were read again');
    } catch (error) {
      this.log.error({ err: error }, 'The token file cannot be used; the tokens before hold');
    }
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

async function stampOf(path: string): Promise<string> {
  try {
    const { ino, size, mtimeNs } = await stat(path, { bigint: true });
    return `${ino} ${size} ${mtimeNs}`;
  } catch {
    return 'none';
  }
}
