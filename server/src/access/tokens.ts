import { isTenant } from './principal.js';
import { roles, type Role } from '../roles.js';
import {
  changeTokenFile,
  hashOf,
  isTokenName,
  newToken,
  readTokenFile,
  tokenNameRule,
  type StoredToken,
} from './tokenFile.js';

/** A command asks for something impossible. */
export class TokenRefused extends Error {
  override name = 'TokenRefused';
}

export interface TokenWish {
  name: string;
  tenant: string;
  role: Role;
  /** Null: until it is revoked. */
  expireTimeMs: number | null;
}

export type TokenSummary = Omit<StoredToken, 'sha256'>;

/** Adds a token and returns it: it cannot be shown again later. */
export async function addToken(path: string, wish: TokenWish): Promise<string> {
  const { name, tenant, role, expireTimeMs } = wish;
  if (!isTokenName(name))
    throw new TokenRefused(`The name must be ${tokenNameRule}, not ${JSON.stringify(name)}`);
  if (!isTenant(tenant))
    throw new TokenRefused(`The tenant must be 2 to 32 of a-z, 0-9 and -, not ${JSON.stringify(tenant)}`);
  if (!roles.includes(role))
    throw new TokenRefused(`The role must be one of ${roles.join(', ')}, not ${JSON.stringify(role)}`);
  const token = newToken();
  return await changeTokenFile(path, (tokens) => {
    if (tokens.some((known) => known.name === name))
      throw new TokenRefused(`There is a token ${name} already; revoke it first, or choose another name`);
    const added = { name, tenant, role, sha256: hashOf(token), createTimeMs: Date.now(), expireTimeMs };
    return { tokens: [...tokens, added], result: token };
  });
}

export async function listTokens(path: string): Promise<TokenSummary[]> {
  return (await readTokenFile(path)).map(({ sha256: _, ...summary }) => summary);
}

export async function revokeToken(path: string, name: string): Promise<TokenSummary> {
  return await changeTokenFile(path, (tokens) => {
    // Removes the tokens of this name and returns them for the audit log.
    const left = tokens.filter((token) => token.name !== name);
    if (left.length === tokens.length)
      throw new TokenRefused(
        `There is no token ${JSON.stringify(name)}; relora-server token list shows them`,
      );
    return { tokens: left, result: tokens.find((token) => token.name === name)! };
  });
}
