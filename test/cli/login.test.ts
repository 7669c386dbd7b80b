import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { ReloraClient } from '@relora/sdk';
import { describe, expect, it, onTestFinished } from 'vitest';
import { addToken } from '../../server/dist/access/tokens.js';
import { temporaryFolder } from '../server/parts.js';
import { runServer } from '../server/runningServer.js';

const main = fileURLToPath(new URL('../../cli/dist/main.js', import.meta.url));

/** The command line of a person with a separate home folder. */
function person(home = temporaryFolder()) {
  const run = async (args: string[], options: { input?: string; env?: Record<string, string> } = {}) => {
    const child = spawn(process.execPath, [main, ...args], {
      env: { PATH: process.env.PATH, HOME: home, ...options.env },
    });
    child.stdin.end(options.input ?? '');
    const [output, errors, [code]] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      once(child, 'close') as Promise<[number]>,
    ]);
    return { code, output, errors };
  };
  return { run, file: join(home, '.config', 'relora', 'profiles.json') };
}

async function serverWithToken(role: 'viewer' | 'operator' = 'operator') {
  const tokenFile = join(temporaryFolder(), 'tokens.json');
  const token = await addToken(tokenFile, { name: 'me', tenant: 'default', role, expireTimeMs: null });
  const { server } = await runServer({ RELORA_TOKEN_FILE: tokenFile });
  return { address: server.grpcAddress, token };
}

describe('relora login', () => {
  it('stores the server and its token where only their owner reads them, and commands use them', async () => {
    const { address, token } = await serverWithToken();
    const { run, file } = person();
    const login = await run(['login', address], { input: `${token}\n` });
    expect(login).toMatchObject({ code: 0, errors: '' });
    expect(login.output).toContain(`Logged in to ReLoRA server`);
    expect(login.output).not.toContain(token);
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(readFileSync(file, 'utf8')).toContain(token);
    expect(await run(['list'])).toMatchObject({ code: 0 });
    const profiles = await run(['profiles']);
    expect(profiles.output).toMatch(
      new RegExp(`^PROFILE +ADDRESS +TENANT +TOKEN\\ndefault \\* +${address} +yes\\n$`),
    );
    expect((await run(['logout'])).code).toBe(0);
    expect(readFileSync(file, 'utf8')).not.toContain(token);
  });

  it('stores nothing when the server refuses the token', async () => {
    const { address } = await serverWithToken();
    const { run } = person();
    const refused = await run(['login', address], { input: 'relora_wrong' });
    expect(refused.code).toBe(3);
    expect(refused.errors).toContain('not known');
    expect((await run(['profiles'])).output).not.toContain(address);
  });

  it('names the server that it cannot reach', async () => {
    const { errors } = await person().run(['login', '127.0.0.1:1', '--no-token', '--timeout', '0.5']);
    // On a busy machine the time limit is reached before the connection is refused.
    expect(errors).toMatch(/^(No server answers at )?127\.0\.0\.1:1: /m);
  });

  it('sends the token of a profile to its own server alone', async () => {
    const [one, other] = [await serverWithToken(), await serverWithToken()];
    const { run } = person();
    await run(['login', one.address], { input: one.token });
    // Another address uses no profile's token; the variable's token is never sent to a profile's server.
    const elsewhere = await run(['--address', other.address, 'list']);
    expect([elsewhere.code, elsewhere.errors]).toEqual([3, expect.stringContaining('no token came with it')]);
    expect((await run(['list'], { env: { RELORA_ADDRESS: other.address } })).code).toBe(3);
    expect((await run(['list'], { env: { RELORA_TOKEN: other.token } })).code).toBe(0);
    const env = { RELORA_ADDRESS: other.address, RELORA_TOKEN: other.token };
    expect((await run(['list'], { env })).code).toBe(0);
    expect(await run(['--address', other.address, '--profile', 'default', 'list'])).toMatchObject({
      code: 2,
    });
  });

  it('keeps several profiles, of which a flag or a variable names one', async () => {
    const [one, other] = [await serverWithToken(), await serverWithToken()];
    const { run } = person();
    await run(['login', one.address, '--name', 'one'], { input: one.token });
    await run(['login', other.address, '--name', 'other'], { input: other.token });
    expect((await run(['info'])).output).toContain(other.address);
    expect((await run(['--profile', 'one', 'info'])).output).toContain(one.address);
    expect((await run(['info'], { env: { RELORA_PROFILE: 'one' } })).output).toContain(one.address);
    expect(await run(['--profile', 'none', 'info'])).toMatchObject({ code: 2 });
  });

  it('uses none of the certificates in the environment', async () => {
    const { address, token } = await serverWithToken();
    const { run } = person();
    const env = { RELORA_CA_FILE: '/no/such/file', RELORA_CERTIFICATE_FILE: '/no/such/file' };
    expect(await run(['login', address], { input: token, env })).toMatchObject({ code: 0, errors: '' });
    expect(await run(['list'], { env })).toMatchObject({ code: 0, errors: '' });
  });

  it('logs in to, lists and removes the profile that a flag or a variable names', async () => {
    const { address, token } = await serverWithToken();
    const { run } = person();
    const env = { RELORA_PROFILE: 'staging' };
    const used = async (options = {}) => {
      const { output } = await run(['profiles', '--json'], options);
      const { profiles } = JSON.parse(output) as { profiles: { name: string; isCurrent: boolean }[] };
      return profiles.map(({ name, isCurrent }) => `${name}${isCurrent ? ' *' : ''}`);
    };
    await run(['login', address, '--profile', 'live'], { input: token });
    await run(['login', address], { input: token, env });
    await run(['login', address], { input: token });
    expect(await used()).toEqual(['live', 'staging', 'default *']);
    expect(await used({ env })).toEqual(['live', 'staging *', 'default']);
    expect(await used({ env: { RELORA_ADDRESS: address } })).toEqual(['live', 'staging', 'default']);
    expect((await run(['logout', '--profile', 'live'])).output).toBe('Removed profile live\n');
    expect((await run(['logout'], { env })).output).toBe('Removed profile staging\n');
    expect((await run(['logout'])).output).toBe('Removed profile default\n');
    expect(await run(['login', address, '--profile', 'a/b'], { input: token })).toMatchObject({ code: 2 });
  });

  it('refuses a file that others may read, and no token at all', async () => {
    const { address, token } = await serverWithToken();
    const { run, file } = person();
    expect(await run(['login', address])).toMatchObject({ code: 2 });
    await run(['login', address], { input: token });
    chmodSync(file, 0o644);
    const refused = await run(['list']);
    expect([refused.code, refused.errors]).toEqual([2, expect.stringContaining(`chmod 600 ${file}`)]);
    expect(refused.errors).not.toContain(token);
  });
});

describe('a token', () => {
  it('is not sent in plain text to another machine', () => {
    const address = 'server.example.org:50051';
    expect(() => new ReloraClient({ address, token: 'secret' })).toThrow('would be sent in plain text');
    for (const options of [
      { plainTextToken: true },
      { address: `https://${address}` },
      { tls: {} },
      { token: '' },
    ])
      new ReloraClient({ address, token: 'secret', ...options }).close();
  });

  it('may be fetched for every call', async () => {
    const { address, token } = await serverWithToken();
    const given = ['relora_old', token];
    const client = new ReloraClient({ address, token: async () => given.shift()! });
    onTestFinished(() => client.close());
    await expect(client.serverInfo()).rejects.toMatchObject({ reason: 'NOT_AUTHENTICATED' });
    expect((await client.serverInfo()).version).toMatch(/^\d/);
  });
});
