import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { exportJWK, generateKeyPair, SignJWT, UnsecuredJWT, type JWTPayload } from 'jose';
import { pino } from 'pino';
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { openAccess } from '../../server/dist/access/access.js';
import { readConfig } from '../../server/dist/config.js';

const keys = await generateKeyPair('RS256', { extractable: true });
const others = await generateKeyPair('RS256', { extractable: true });

const keyOf = async ({ publicKey }: typeof keys, kid = 'one') => ({
  ...(await exportJWK(publicKey)),
  kid,
  alg: 'RS256',
});

/** A local identity provider: its discovery document, with fields changed by `document`, and its keys. */
async function provider(published = [keyOf(keys)], document: object = {}) {
  const server = createServer((request, response) => {
    void Promise.all(published).then((found) => answer(request.url!, found, response));
  });
  const answer = (path: string, found: object[], response: ServerResponse) => {
    const body = path === '/keys' ? { keys: found } : { issuer, jwks_uri: `${issuer}/keys`, ...document };
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(body));
  };
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => void server.close());
  const issuer = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return issuer;
}

async function accessOf(issuer: string, settings: Record<string, string> = {}) {
  const config = readConfig({ RELORA_OIDC_ISSUER: issuer, RELORA_OIDC_AUDIENCE: 'relora', ...settings });
  const access = await openAccess(config, pino({ level: 'silent' }));
  onTestFinished(() => access.close());
  return async (jwt: string) => await access.authenticate({ authorization: `Bearer ${jwt}` });
}

const claims = { sub: 'alice', tenant: 'acme', role: 'trainer' };
type Forgery = [what: string, make: (issuer: string) => Promise<string>];
const inSeconds = (seconds: number) => Math.floor(Date.now() / 1000) + seconds;
afterEach(() => void vi.useRealTimers());

async function sign(
  issuer: string,
  payload: JWTPayload = claims,
  changes: Partial<{
    audience: string;
    expires: string | null;
    issuer: string;
    key: typeof keys.privateKey;
    header: object;
  }> = {},
) {
  const { audience = 'relora', expires = '5m', key = keys.privateKey, header = {} } = changes;
  const jwt = new SignJWT(payload)
    .setProtectedHeader({ alg: 'RS256', kid: 'one', ...header })
    .setIssuer(changes.issuer ?? issuer)
    .setAudience(audience);
  return await (expires === null ? jwt : jwt.setExpirationTime(expires)).sign(key, { crit: { exp: true } });
}

describe('a JWT of the identity provider', () => {
  it('gives name, tenant and role by its claims', async () => {
    const issuer = await provider();
    const authenticate = await accessOf(issuer);
    expect(await authenticate(await sign(issuer))).toMatchObject({
      name: 'alice',
      tenant: 'acme',
      role: 'trainer',
    });
  });

  it('gives them by claims of other names, and by values that are mapped', async () => {
    const issuer = await provider();
    const authenticate = await accessOf(issuer, {
      RELORA_OIDC_TENANT_CLAIM: 'https://example.org/team',
      RELORA_OIDC_ROLE_CLAIM: 'realm_access.roles',
      RELORA_OIDC_ROLES: 'viewer=staff,trainer=research,operator=platform,operator=root',
    });
    const jwt = await sign(issuer, {
      sub: 'bob',
      'https://example.org/team': 'labs',
      realm_access: { roles: ['staff', 'research', 'unrelated'] },
    });
    expect(await authenticate(jwt)).toMatchObject({ name: 'bob', tenant: 'labs', role: 'trainer' });
    const operator = await sign(issuer, { sub: 'eve', realm_access: { roles: ['root'] } });
    expect(await authenticate(operator)).toMatchObject({ tenant: 'default', role: 'operator' });
  });

  it.each<Forgery>([
    ['for another audience', (issuer) => sign(issuer, claims, { audience: 'another' })],
    ['of another issuer', (issuer) => sign(issuer, claims, { issuer: 'https://example.org' })],
    ['that has expired', (issuer) => sign(issuer, claims, { expires: '-1m' })],
    ['signed by another key', (issuer) => sign(issuer, claims, { key: others.privateKey })],
    ['without a tenant', (issuer) => sign(issuer, { sub: 'alice', role: 'trainer' })],
    ['with a tenant that is no name', (issuer) => sign(issuer, { ...claims, tenant: '../other' })],
    ['without a role', (issuer) => sign(issuer, { sub: 'alice', tenant: 'acme' })],
    ['without a subject', (issuer) => sign(issuer, { tenant: 'acme', role: 'trainer' })],
    [
      'without a signature',
      async (issuer) =>
        new UnsecuredJWT(claims).setIssuer(issuer).setAudience('relora').setExpirationTime('5m').encode(),
    ],
    [
      'signed with the public key as a shared secret',
      async (issuer) =>
        await new SignJWT(claims)
          .setProtectedHeader({ alg: 'HS256', kid: 'one' })
          .setIssuer(issuer)
          .setAudience('relora')
          .setExpirationTime('5m')
          .sign(Buffer.from(JSON.stringify(await exportJWK(keys.publicKey)))),
    ],
    ['that is not valid yet', (issuer) => sign(issuer, { ...claims, nbf: inSeconds(600) })],
    ['without an end', (issuer) => sign(issuer, claims, { expires: null })],
    ['whose subject is none', (issuer) => sign(issuer, { ...claims, sub: ['alice'] as never })],
    ['whose subject is empty', (issuer) => sign(issuer, { ...claims, sub: '' })],
    ['whose subject has two lines', (issuer) => sign(issuer, { ...claims, sub: 'alice\nroot' })],
    ['whose subject has a zero in it', (issuer) => sign(issuer, { ...claims, sub: 'alice\0' })],
    ['whose subject steers terminals', (issuer) => sign(issuer, { ...claims, sub: 'alice\u001b[2J' })],
    ['whose subject is endless', (issuer) => sign(issuer, { ...claims, sub: 'a'.repeat(256) })],
    ...['../../etc/passwd', '/dev/null', "' or 1=1", 'one\0', 'two', ''].map((kid): Forgery => [
      `signed by another key that it calls ${JSON.stringify(kid)}`,
      (issuer) => sign(issuer, claims, { key: others.privateKey, header: { kid } }),
    ]),
    [
      'that brings its own key',
      async (issuer) =>
        await sign(issuer, claims, {
          key: others.privateKey,
          header: { kid: 'other', jwk: (await keyOf(others)) as never },
        }),
    ],
    [
      'that asks for something that must be understood',
      (issuer) => sign(issuer, claims, { header: { crit: ['exp'], exp: 1 } }),
    ],
    [
      'of which a claim was changed',
      async (issuer) => {
        const [header, , signature] = (await sign(issuer)).split('.');
        const [, payload] = (await sign(issuer, { ...claims, role: 'operator' })).split('.');
        return [header, payload, signature].join('.');
      },
    ],
    [
      'of a megabyte',
      (issuer) => sign(issuer, { ...claims, filling: 'x'.repeat(1 << 20) }, { key: others.privateKey }),
    ],
    ['of dots alone', async () => '.'.repeat(10_000)],
    ['that is none', async () => 'a.b.c'],
    ['that is a token of the file', async () => 'relora_abc'],
  ])('%s is refused, and nothing of it is in the message', async (_, make) => {
    const issuer = await provider();
    const authenticate = await accessOf(issuer);
    const jwt = await make(issuer);
    const error: unknown = await authenticate(jwt).catch((refused: unknown) => refused);
    expect(error).toMatchObject({ reason: 'NOT_AUTHENTICATED' });
    for (const part of jwt.split('.').filter(({ length }) => length > 8))
      expect(String(error)).not.toContain(part);
  });

  it('leads the server to no address that it names itself', async () => {
    let asked = 0;
    const stranger = createServer((_, response) => {
      asked++;
      response.end('{}');
    });
    await new Promise<void>((resolve) => stranger.listen(0, '127.0.0.1', resolve));
    onTestFinished(() => void stranger.close());
    const issuer = await provider();
    const authenticate = await accessOf(issuer);
    const address = `http://127.0.0.1:${(stranger.address() as AddressInfo).port}/keys`;
    for (const header of [{ jku: address }, { x5u: address }, { jku: address, x5u: address, kid: address }]) {
      const forged = await sign(issuer, claims, { key: others.privateKey, header });
      await expect(authenticate(forged)).rejects.toMatchObject({ reason: 'NOT_AUTHENTICATED' });
      const elsewhere = await sign(address, claims, { key: others.privateKey });
      await expect(authenticate(elsewhere)).rejects.toMatchObject({ reason: 'NOT_AUTHENTICATED' });
    }
    expect(asked).toBe(0);
  });

  it('is taken with a key that the provider has since, and not with one that it gave up', async () => {
    const published = [keyOf(keys)];
    const issuer = await provider(published);
    const authenticate = await accessOf(issuer);
    await authenticate(await sign(issuer));
    published.splice(0, 1, keyOf(others, 'two'));
    // Keys are fetched again at most every half minute when a token has an unknown key, and otherwise every ten minutes.
    vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 60_000 });
    const rotated = async () =>
      await sign(issuer, claims, { key: others.privateKey, header: { kid: 'two' } });
    expect(await authenticate(await rotated())).toMatchObject({ name: 'alice' });
    await expect(authenticate(await sign(issuer))).rejects.toMatchObject({ reason: 'NOT_AUTHENTICATED' });
    published.splice(0, 1, keyOf(keys, 'three'));
    vi.setSystemTime(Date.now() + 11 * 60_000);
    await expect(authenticate(await rotated())).rejects.toMatchObject({ reason: 'NOT_AUTHENTICATED' });
  });

  it.each([
    ['in plain text', { jwks_uri: 'http://keys.example.org/' }],
    ['in a file', { jwks_uri: 'file:///etc/keys.json' }],
    ['as data', { jwks_uri: 'data:application/json,{"keys":[]}' }],
    ['of another issuer', { issuer: 'https://example.org' }],
  ])('is refused where the provider names keys %s', async (_, document) => {
    const issuer = await provider([keyOf(keys)], document);
    const authenticate = await accessOf(issuer);
    await expect(authenticate(await sign(issuer))).rejects.toMatchObject({
      reason: 'IDENTITY_PROVIDER_AWAY',
    });
  });

  it('is checked again as soon as the provider is back', async () => {
    const issuer = await provider();
    const authenticate = await accessOf(issuer, { RELORA_OIDC_JWKS: 'http://127.0.0.1:9/keys' });
    await expect(authenticate(await sign(issuer))).rejects.toMatchObject({
      reason: 'IDENTITY_PROVIDER_AWAY',
    });
  });
});

describe('settings of the provider', () => {
  it('are refused where any JWT of the provider would do, or keys come in plain text', () => {
    expect(() => readConfig({ RELORA_OIDC_ISSUER: 'https://example.org' })).toThrow(
      'RELORA_OIDC_AUDIENCE must be set',
    );
    expect(() => readConfig({ RELORA_OIDC_AUDIENCE: 'relora' })).toThrow('RELORA_OIDC_ISSUER must be set');
    expect(() =>
      readConfig({ RELORA_OIDC_ISSUER: 'http://example.org', RELORA_OIDC_AUDIENCE: 'relora' }),
    ).toThrow('https://');
    expect(() => readConfig({ RELORA_OIDC_ROLES: 'king=arthur' })).toThrow('ROLE=VALUE');
    expect(() => readConfig({ RELORA_WITHOUT_TOKEN: 'jobs' })).toThrow('health, reflection, metrics');
  });
});
