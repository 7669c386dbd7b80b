import { parseArgs } from 'node:util';
import { askServer } from '../admin/askServer.js';
import type { AdminHandlers } from '../admin/adminServer.js';
import type { AuditLog } from '../audit/auditLog.js';
import type { Config } from '../config.js';
import type { Role } from '../roles.js';
import type { TokenList } from './tokenList.js';
import {
  addToken,
  listTokens,
  revokeToken,
  TokenRefused,
  type TokenSummary,
  type TokenWish,
} from './tokens.js';

export const tokenUsage = `relora-server token add NAME [--role viewer|trainer|operator] [--tenant TENANT] [--expires 90d|12h]
relora-server token list
relora-server token revoke NAME`;

/** Adds, lists or revokes tokens: through the server that runs on the data folder, or in the file if none runs. */
export async function tokenCommand(
  config: Pick<Config, 'tokenFile' | 'dataFolder'>,
  args: readonly string[],
  write: { out(text: string): void; note(text: string): void },
): Promise<void> {
  const { tokenFile, dataFolder } = config;
  if (tokenFile === '')
    throw new TokenRefused('RELORA_TOKEN_FILE is not set: name the file that the server reads');
  const [command, ...rest] = args;
  const ask = async <Result>(name: string, input: object, alone: () => Promise<Result>): Promise<Result> =>
    ((await askServer<Result>(dataFolder, `tokens/${name}`, input)) ?? { result: await alone() }).result;
  if (command === 'add') {
    const wish = parseWish(rest);
    const token = await ask('add', wish, async () => await addToken(tokenFile, wish));
    write.note(`Token ${wish.name} of tenant ${wish.tenant} with role ${wish.role}; it is shown only now:`);
    write.out(`${token}\n`);
  } else if (command === 'list' && rest.length === 0) {
    write.out(tableOf(await ask('list', {}, async () => await listTokens(tokenFile))));
  } else if (command === 'revoke' && rest.length === 1) {
    const name = rest[0]!;
    await ask('revoke', { name }, async () => await revokeToken(tokenFile, name));
    write.note(`Token ${name} is revoked`);
  } else throw new TokenRefused(`Expected:\n${tokenUsage}`);
}

/** The handlers of these commands in the running server; changes take effect at once. */
export function tokenHandlers(path: string, list: TokenList, audit: Pick<AuditLog, 'note'>): AdminHandlers {
  const note = async (method: string, name: string, tenant: string): Promise<void> =>
    await audit.note({
      caller: 'relora-server',
      tenant,
      peer: 'this machine',
      method,
      resource: `tokens/${name}`,
      request_id: '',
      result: 'OK',
    });
  return {
    'tokens/add': async (wish: TokenWish) => {
      const token = await addToken(path, wish);
      await list.look();
      await note('token add', wish.name, wish.tenant);
      return token;
    },
    'tokens/list': async () => await listTokens(path),
    'tokens/revoke': async ({ name }: { name: string }) => {
      const { tenant } = await revokeToken(path, name);
      await list.look();
      await note('token revoke', name, tenant);
    },
  };
}

function parseWish(args: readonly string[]): TokenWish {
  const options = {
    role: { type: 'string', default: 'trainer' },
    tenant: { type: 'string', default: 'default' },
    expires: { type: 'string', default: 'never' },
  } as const;
  let parsed;
  try {
    parsed = parseArgs({ args: [...args], options, allowPositionals: true });
  } catch (error) {
    throw new TokenRefused(`${(error as Error).message}\n${tokenUsage}`);
  }
  const { values, positionals } = parsed;
  if (positionals.length !== 1) throw new TokenRefused(`Expected one name:\n${tokenUsage}`);
  return {
    name: positionals[0]!,
    tenant: values.tenant,
    role: values.role as Role,
    expireTimeMs: parseExpiry(values.expires),
  };
}

const unitMs = { m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

function parseExpiry(text: string): number | null {
  if (text === 'never') return null;
  const match = /^([1-9][0-9]{0,4})([mhd])$/.exec(text);
  if (match === null)
    throw new TokenRefused(`--expires must be such as 90d, 12h, 30m or never, not ${JSON.stringify(text)}`);
  return Date.now() + Number(match[1]) * unitMs[match[2] as keyof typeof unitMs];
}

function tableOf(tokens: readonly TokenSummary[]): string {
  const rows = tokens.map(({ name, tenant, role, createTimeMs, expireTimeMs }) => [
    name,
    tenant,
    role,
    new Date(createTimeMs).toISOString(),
    expireTimeMs === null ? 'never' : new Date(expireTimeMs).toISOString(),
  ]);
  const all = [['NAME', 'TENANT', 'ROLE', 'CREATED', 'EXPIRES'], ...rows];
  const widths = all[0]!.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  return all
    .map(
      (row) =>
        `${row
          .map((cell, column) => cell.padEnd(widths[column]!))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('');
}
