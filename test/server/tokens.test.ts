import { execFile } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ServerServiceDefinition, TrainingServiceDefinition } from '@relora/sdk/contract';
import type { ClientError } from 'nice-grpc';
import { createClient, Metadata, Status, type CallOptions } from 'nice-grpc';
import { describe, expect, it } from 'vitest';
import { hashOf } from '../../server/dist/access/tokenFile.js';
import { addToken, revokeToken } from '../../server/dist/access/tokens.js';
import { reflect } from '../e2e/reflectedClient.js';
import { temporaryFolder } from './parts.js';
import { runServer, type RunningTestServer } from './runningServer.js';

const main = fileURLToPath(new URL('../../server/dist/main.js', import.meta.url));

/** Runs `relora-server token …` like an operator. */
function tokenCommand(
  dataFolder: string,
  args: string[],
  tokenFile = join(dataFolder, 'tokens.json'),
): Promise<{ code: number; stdout: string; stderr: string }> {
  const env = { RELORA_DATA_FOLDER: dataFolder, RELORA_TOKEN_FILE: tokenFile };
  return new Promise((resolve) => {
    execFile(process.execPath, [main, 'token', ...args], { env }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}

async function serverWithTokens(settings: Record<string, string> = {}, dataFolder = temporaryFolder()) {
  const tokenFile = join(dataFolder, 'tokens.json');
  const wish = { tenant: 'default', expireTimeMs: null };
  const tokens = {
    viewer: await addToken(tokenFile, { ...wish, name: 'reader', role: 'viewer' }),
    trainer: await addToken(tokenFile, { ...wish, name: 'ci', role: 'trainer' }),
    operator: await addToken(tokenFile, { ...wish, name: 'admin', role: 'operator' }),
  };
  return {
    ...(await runServer({ RELORA_TOKEN_FILE: tokenFile, ...settings }, dataFolder)),
    tokens,
    tokenFile,
  };
}

const bearer = (token: string): CallOptions => ({ metadata: Metadata({ authorization: `Bearer ${token}` }) });

async function codeOf(call: Promise<unknown>): Promise<Status> {
  return await call.then(
    () => Status.OK,
    (error: unknown) => (error as ClientError).code,
  );
}

const infoWith = async ({ channel }: Pick<RunningTestServer, 'channel'>, options?: CallOptions) =>
  await codeOf(createClient(ServerServiceDefinition, channel).getServerInfo({}, options));

/** Resolves with the new code once it is no longer `code`; the file is read once a second. */
async function codeAfter(
  server: Pick<RunningTestServer, 'channel'>,
  code: Status,
  token: string,
): Promise<Status> {
  for (;;) {
    const now = await infoWith(server, bearer(token));
    if (now !== code) return now;
    await new Promise((resolve) => setTimeout(resolve, 20)); // nothing reports that the file was read
  }
}

describe('a server with tokens', () => {
  it('refuses calls without a token, with an unknown one and with another kind of authorization', async () => {
    const server = await serverWithTokens();
    for (const authorization of [
      undefined,
      'Bearer relora_nonsense',
      'Basic YTpi',
      'Bearer',
      server.tokens.viewer,
    ]) {
      const metadata = Metadata(authorization === undefined ? {} : { authorization });
      expect(await infoWith(server, { metadata }), authorization).toBe(Status.UNAUTHENTICATED);
    }
    expect(await infoWith(server, bearer(server.tokens.viewer))).toBe(Status.OK);
  });

  it('lets a viewer read, a trainer change, and nobody but operators name another tenant', async () => {
    const { channel, tokens } = await serverWithTokens();
    const training = createClient(TrainingServiceDefinition, channel);
    const cancel = (token: string) => codeOf(training.cancelJob({ name: 'jobs/not-there' }, bearer(token)));
    expect(await cancel(tokens.viewer)).toBe(Status.PERMISSION_DENIED);
    expect(await cancel(tokens.trainer)).toBe(Status.NOT_FOUND);
    const listFor = (token: string, tenant: string) => {
      const metadata = Metadata({ authorization: `Bearer ${token}`, 'relora-tenant': tenant });
      return codeOf(training.listJobs({}, { metadata }));
    };
    expect(await listFor(tokens.trainer, 'acme')).toBe(Status.PERMISSION_DENIED);
    expect(await listFor(tokens.trainer, 'default')).toBe(Status.OK);
    expect(await listFor(tokens.operator, 'acme')).toBe(Status.OK);
    expect(await listFor(tokens.operator, '../acme')).toBe(Status.INVALID_ARGUMENT);
  });

  it('answers health without a token, and reflection and metrics with one', async () => {
    const { server, health, fetch, tokens } = await serverWithTokens();
    expect((await health.check({ service: '' })).status).toBe(1);
    await expect(reflect(server.grpcAddress, 'v1')).rejects.toThrow('UNAUTHENTICATED');
    expect((await fetch('/healthz')).status).toBe(200);
    const refused = await fetch('/metrics');
    expect([refused.status, refused.headers.get('www-authenticate')]).toEqual([401, 'Bearer']);
    const scrape = async (token: string) =>
      await fetch('/metrics', { headers: { authorization: `Bearer ${token}` } });
    const [ofTenant, all] = [await scrape(tokens.viewer), await scrape(tokens.operator)];
    expect([ofTenant.status, all.status]).toEqual([200, 200]);
    // There are no jobs yet, and everything else is for operators.
    expect(ofTenant.text).toBe('');
    expect(all.text).toContain('relora_build_info');
  });

  it('answers without a token what RELORA_WITHOUT_TOKEN names, and nothing else', async () => {
    const open = await serverWithTokens({ RELORA_WITHOUT_TOKEN: 'reflection,metrics' });
    expect(await codeOf(open.health.check({ service: '' }))).toBe(Status.UNAUTHENTICATED);
    expect((await reflect(open.server.grpcAddress, 'v1')).serviceNames).toContain(
      'relora.v1.TrainingService',
    );
    expect([(await open.fetch('/metrics')).status, (await open.fetch('/readyz')).status]).toEqual([200, 401]);
  });

  it('ends an open stream when its token is revoked, and when it expires', async () => {
    const server = await serverWithTokens({ RELORA_WITHOUT_TOKEN: 'none' });
    const { health, tokenFile, tokens, dataFolder } = server;
    /** A stream that is open, with the code that it will end with; null if it was refused. */
    const open = async (token: string): Promise<{ end: Promise<Status> } | null> => {
      const stream = health.watch({ service: '' }, bearer(token))[Symbol.asyncIterator]();
      if ((await codeOf(stream.next())) !== Status.OK) return null;
      const rest = async (): Promise<void> => {
        while ((await stream.next()).done !== true);
      };
      return { end: codeOf(rest()) };
    };
    const revoked = (await open(tokens.viewer))!;
    let soon = '';
    let expiring: Awaited<ReturnType<typeof open>> = null;
    // It has to open before the token expires, also on a busy machine.
    for (let lifeMs = 15_000; expiring === null; lifeMs *= 2) {
      const expireTimeMs = Date.now() + lifeMs;
      const name = `expires-after-${lifeMs}`;
      soon = await addToken(tokenFile, { name, tenant: 'default', role: 'viewer', expireTimeMs });
      while (expiring === null && Date.now() < expireTimeMs) {
        expiring = await open(soon); // the file is read once a second
        await new Promise((resolve) => setTimeout(resolve, 10));
      }
    }
    const { code, stderr } = await tokenCommand(dataFolder, ['revoke', 'reader']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: 'Token reader is revoked\n' });
    expect(await revoked.end).toBe(Status.UNAUTHENTICATED);
    expect(await expiring.end).toBe(Status.UNAUTHENTICATED);
    expect(await infoWith(server, bearer(soon))).toBe(Status.UNAUTHENTICATED);
  });

  it('takes a change of the file while it runs, and keeps its tokens when the file is broken', async () => {
    const server = await serverWithTokens();
    const { tokenFile, tokens } = server;
    await revokeToken(tokenFile, 'ci');
    expect(await codeAfter(server, Status.OK, tokens.trainer)).toBe(Status.UNAUTHENTICATED);
    writeFileSync(tokenFile, 'half a fi');
    // Waits until the file was read again to find the second token: the first must still be valid then.
    await new Promise((resolve) => setTimeout(resolve, 1500));
    expect(await infoWith(server, bearer(tokens.viewer))).toBe(Status.OK);
  });
});

describe('the token file', () => {
  it('has hashes alone, and nobody but its owner may write it', async () => {
    const folder = temporaryFolder();
    const tokenFile = join(folder, 'tokens.json');
    const token = await addToken(tokenFile, {
      name: 'ci',
      tenant: 'acme',
      role: 'trainer',
      expireTimeMs: null,
    });
    expect(token).toMatch(/^relora_[A-Za-z0-9_-]{43}$/);
    const text = readFileSync(tokenFile, 'utf8');
    expect(text).not.toContain(token.slice('relora_'.length));
    expect(text).toContain(hashOf(token));
    expect(statSync(tokenFile).mode & 0o777).toBe(0o600);
    expect(readdirSync(folder)).toEqual(['tokens.json']);
    chmodSync(tokenFile, 0o622);
    await expect(runServer({ RELORA_TOKEN_FILE: tokenFile })).rejects.toThrow(`chmod go-w ${tokenFile}`);
  });

  it.each(['no JSON', '{}', '{"tokens": [{"name": "a"}]}'])('that says %j stops the start', async (text) => {
    const tokenFile = join(temporaryFolder(), 'tokens.json');
    writeFileSync(tokenFile, text, { mode: 0o600 });
    await expect(runServer({ RELORA_TOKEN_FILE: tokenFile })).rejects.toThrow(tokenFile);
  });

  it('that is missing lets nobody in', async () => {
    const server = await runServer({ RELORA_TOKEN_FILE: join(temporaryFolder(), 'none.json') });
    expect(await infoWith(server)).toBe(Status.UNAUTHENTICATED);
    expect(await infoWith(server, bearer('relora_x'))).toBe(Status.UNAUTHENTICATED);
  });

  it('keeps every token of commands that run at once', async () => {
    const tokenFile = join(temporaryFolder(), 'tokens.json');
    const names = Array.from({ length: 12 }, (_, index) => `token-${index}`);
    const wish = { tenant: 'acme', role: 'viewer', expireTimeMs: null } as const;
    await Promise.all(names.map(async (name) => await addToken(tokenFile, { ...wish, name })));
    const stored = JSON.parse(readFileSync(tokenFile, 'utf8')) as { tokens: { name: string }[] };
    expect(stored.tokens.map(({ name }) => name).sort()).toEqual([...names].sort());
  });
});

describe('relora-server token', () => {
  it('adds, lists and revokes without a server, and the token is on standard output alone', async () => {
    const folder = temporaryFolder();
    const added = await tokenCommand(folder, [
      'add',
      'ci',
      '--tenant',
      'acme',
      '--role',
      'viewer',
      '--expires',
      '90d',
    ]);
    expect(added.code).toBe(0);
    expect(added.stdout).toMatch(/^relora_\S{43}\n$/);
    expect(added.stderr).not.toContain(added.stdout.trim());
    const { stdout } = await tokenCommand(folder, ['list']);
    expect(stdout).toMatch(/^NAME +TENANT +ROLE +CREATED +EXPIRES\nci +acme +viewer +\S+Z +\S+Z\n$/);
    expect((await tokenCommand(folder, ['revoke', 'ci'])).code).toBe(0);
    expect((await tokenCommand(folder, ['list'])).stdout).toMatch(/^NAME[^\n]*\n$/);
  });

  it('asks a running server, so that a token holds at once', async () => {
    const server = await serverWithTokens();
    const { stdout } = await tokenCommand(server.dataFolder, ['add', 'new']);
    expect(await infoWith(server, bearer(stdout.trim()))).toBe(Status.OK);
    await tokenCommand(server.dataFolder, ['revoke', 'new']);
    expect(await infoWith(server, bearer(stdout.trim()))).toBe(Status.UNAUTHENTICATED);
  });

  it('reaches it at a path that is longer than an address of a socket may be', async () => {
    const folder = join(temporaryFolder(), 'a-long-name-of-a-folder'.repeat(5));
    mkdirSync(folder);
    const server = await serverWithTokens({}, folder);
    expect(existsSync(join(folder, 'admin.sock'))).toBe(true);
    expect(statSync(join(folder, 'admin.sock')).mode & 0o777).toBe(0o600);
    const { stdout } = await tokenCommand(folder, ['add', 'new']);
    expect(await infoWith(server, bearer(stdout.trim()))).toBe(Status.OK);
    await server.server.stop();
    expect(existsSync(join(folder, 'admin.sock'))).toBe(false);
  });

  it.each([
    [['add'], 'Expected one name'],
    [['add', 'a b'], 'The name must be 1 to 63 of'],
    [['add', 'ci', '--role', 'king'], 'The role must be one of viewer, trainer, operator, not "king"'],
    [['add', 'ci', '--tenant', 'A/B'], 'The tenant must be 2 to 32 of a-z, 0-9 and -, not "A/B"'],
    [['add', 'ci', '--expires', 'soon'], '--expires must be such as 90d, 12h, 30m or never, not "soon"'],
    [['revoke', 'nobody'], 'There is no token "nobody"'],
    [['sing'], 'relora-server token add NAME'],
  ])('refuses %j', async (args, message) => {
    const { code, stderr } = await tokenCommand(temporaryFolder(), args);
    expect(stderr).toContain(message);
    expect(code).toBe(2);
  });

  it('refuses a name twice, and a server that reads no token file', async () => {
    const folder = temporaryFolder();
    await tokenCommand(folder, ['add', 'ci']);
    expect((await tokenCommand(folder, ['add', 'ci'])).stderr).toContain('There is a token ci already');
    expect((await tokenCommand(folder, ['list'], '')).stderr).toContain('RELORA_TOKEN_FILE is not set');
  });
});
