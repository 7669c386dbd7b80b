import { createHash, randomBytes } from 'node:crypto';
import { open, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { syncFolder } from '../store/folders.js';
import { isTenant } from './principal.js';
import { roles, type Role } from '../roles.js';

/** A token in the file, which contains only its hash. */
export interface StoredToken {
  /** Its name in lists, in the audit log and for revoking it; unique. */
  name: string;
  tenant: string;
  role: Role;
  /**
   * Hash of the token. Plain SHA-256 and not scrypt: a token has 256 random bits, which nobody can guess, so a slow hash would protect
   * nothing, but would allow strangers to make each call cost the server tens of milliseconds.
   */
  sha256: string;
  createTimeMs: number;
  /** Null: valid until it is revoked. */
  expireTimeMs: number | null;
}

/** A token file that cannot be used. The message names the file and what to do. */
export class TokenFileInvalid extends Error {
  override name = 'TokenFileInvalid';
}

/** Prefix of every token, so that secret scanners find one that was committed. */
export const tokenPrefix = 'relora_';

export function newToken(): string {
  return `${tokenPrefix}${randomBytes(32).toString('base64url')}`;
}

export function hashOf(token: string): string {
  return createHash('sha256').update(token).digest('hex');
}

const namePattern = /^[A-Za-z0-9][A-Za-z0-9._@-]{0,62}$/;

export const tokenNameRule = '1 to 63 of A-Z, a-z, 0-9 and . _ @ -, the first a letter or digit';

export function isTokenName(name: string): boolean {
  return namePattern.test(name);
}

/** The tokens in a file; none if it does not exist. Throws TokenFileInvalid. */
export async function readTokenFile(path: string): Promise<StoredToken[]> {
  let text: string;
  try {
    const { mode } = await stat(path);
    // Whoever can write the file can let anybody in. Reading it does no harm: it contains hashes.
    if ((mode & 0o022) !== 0)
      throw new TokenFileInvalid(`${path} can be written by others than its owner: chmod go-w ${path}`);
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    if (error instanceof TokenFileInvalid) throw error;
    throw new TokenFileInvalid(`${path} cannot be read: ${(error as Error).message}`);
  }
  return parseTokens(path, text);
}

/** Replaces the whole file; one change at a time, across processes. */
export async function changeTokenFile<Result>(
  path: string,
  change: (tokens: StoredToken[]) => { tokens: StoredToken[]; result: Result },
): Promise<Result> {
  const lock = `${path}.lock`;
  const held = await takeLock(lock);
  try {
    const { tokens, result } = change(await readTokenFile(path));
    const temporary = `${path}.tmp`;
    await rm(temporary, { force: true });
    const file = await open(temporary, 'wx', 0o600);
    try {
      await file.writeFile(`${JSON.stringify({ tokens }, null, 2)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
    await syncFolder(dirname(path));
    return result;
  } finally {
    await held.close();
    await rm(lock, { force: true });
  }
}

const lockMs = 5000;

async function takeLock(lock: string) {
  for (const startMs = Date.now(); ;) {
    try {
      return await open(lock, 'wx', 0o600);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      if (Date.now() - startMs > lockMs)
        throw new TokenFileInvalid(
          `${lock} is there: another command changes the tokens, or one was killed; then remove it`,
        );
      await sleep(50);
    }
  }
}

function parseTokens(path: string, text: string): StoredToken[] {
  let tokens: unknown;
  try {
    tokens = (JSON.parse(text) as { tokens?: unknown }).tokens;
  } catch {
    throw new TokenFileInvalid(`${path} is not JSON; only relora-server token writes it`);
  }
  if (!Array.isArray(tokens) || !tokens.every(isStoredToken))
    throw new TokenFileInvalid(`${path} is not a list of tokens as relora-server token writes it`);
  if (new Set(tokens.map(({ name }) => name)).size !== tokens.length)
    throw new TokenFileInvalid(`${path} has two tokens of one name`);
  return tokens;
}

function isStoredToken(value: unknown): value is StoredToken {
  const token = (value ?? {}) as Partial<Record<keyof StoredToken, unknown>>;
  return (
    isTokenName(String(token.name)) &&
    isTenant(String(token.tenant)) &&
    roles.includes(token.role as Role) &&
    /^[0-9a-f]{64}$/.test(String(token.sha256)) &&
    Number.isSafeInteger(token.createTimeMs) &&
    (token.expireTimeMs === null || Number.isSafeInteger(token.expireTimeMs))
  );
}
