import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { exportJWK, generateKeyPair, SignJWT, UnsecuredJWT, type JWTPayload } from 'jose';
import { pino } from 'pino';
import { describe, expect, it, onTestFinished } from 'vitest';
import { openAccess } from '../../server/dist/access/access.js';
import { readConfig } from '../../server/dist/config.js';

const keys = await generateKeyPair('RS256', { extractable: true });
const others = await generateKeyPair('RS256', { extractable: true });

/** A provider on this machine: its discovery document and its keys. */
async function provider() {
  const key = { ...(await exportJWK(keys.publicKey)), kid: 'one', alg: 'RS256' };
  const server = createServer((request, response) => {
    const body = request.url === '/keys' ? { keys: [key] } : { issuer, jwks_uri: `${issuer}/keys` };
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(body));
  });
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

async function sign(
  issuer: string,
  payload: JWTPayload = claims,
  changes: Partial<{ audience: string; expires: string; issuer: string; key: typeof keys.privateKey }> = {},
) {
  return await new SignJWT(payload)
    .setProtectedHeader({ alg: 'RS256', kid: 'one' })
    .setIssuer(changes.issuer ?? issuer)
    .setAudience(changes.audience ?? 'relora')
    .setExpirationTime(changes.expires ?? '5m')
    .sign(changes.key ?? keys.privateKey);
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

  it.each<[string, (issuer: string) => Promise<string>]>([
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
