import { readFile } from 'node:fs/promises';
import {
  createLocalJWKSet,
  createRemoteJWKSet,
  errors,
  jwtVerify,
  type JSONWebKeySet,
  type JWTPayload,
  type JWTVerifyGetKey,
} from 'jose';
import { isSafeAddress } from '../config.js';
import { ServiceError } from '../errors.js';
import { isCallerName, isTenant, type Principal } from './principal.js';
import { roles, type Role } from '../roles.js';

export interface IdentityProviderOptions {
  issuer: string;
  audience: string;
  /** https:// address or path of the provider's keys; empty: found through the issuer's discovery document. */
  jwks: string;
  tenantClaim: string;
  roleClaim: string;
  /** The values of the role claim that give each role. */
  roleValues: Readonly<Record<Role, readonly string[]>>;
}

/** Only signatures by private keys of the provider: a shared secret, or no signature, is no proof. */
const algorithms = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', 'ES256', 'ES384', 'ES512', 'EdDSA'];
/** Tolerance for the clocks of two machines. */
const clockSkewSeconds = 30;
const discoveryMs = 5000;

/** Reads JWTs of one OpenID Connect provider: it checks issuer, audience, time and signature, and takes tenant and role from claims. */
export class IdentityProvider {
  private keys: JWTVerifyGetKey | undefined;

  constructor(private readonly options: IdentityProviderOptions) {}

  /** Throws NOT_AUTHENTICATED with what is wrong, IDENTITY_PROVIDER_AWAY if its keys cannot be fetched. */
  async read(jwt: string): Promise<Principal> {
    const { issuer, audience } = this.options;
    try {
      this.keys ??= await this.findKeys();
      const { payload } = await jwtVerify(jwt, this.keys, {
        issuer,
        audience,
        algorithms,
        clockTolerance: clockSkewSeconds,
        requiredClaims: ['exp', 'sub'],
      });
      return this.toPrincipal(payload);
    } catch (error) {
      if (error instanceof ServiceError) throw error;
      // Only for errors of the token itself; their messages do not contain its text.
      if (error instanceof errors.JOSEError && !(error instanceof errors.JWKSTimeout) && isAboutToken(error))
        throw new ServiceError('NOT_AUTHENTICATED', { cause: `its JWT is refused: ${error.message}` });
      throw new ServiceError('IDENTITY_PROVIDER_AWAY', { issuer });
    }
  }

  private async findKeys(): Promise<JWTVerifyGetKey> {
    const { issuer, jwks } = this.options;
    if (jwks !== '' && !/^https?:\/\//.test(jwks))
      return createLocalJWKSet(JSON.parse(await readFile(jwks, 'utf8')) as JSONWebKeySet);
    return createRemoteJWKSet(new URL(jwks === '' ? await discover(issuer) : jwks));
  }

  private toPrincipal(payload: JWTPayload): Principal {
    const { tenantClaim, roleClaim, roleValues } = this.options;
    const values = [claimOf(payload, roleClaim)].flat().map(String);
    const role = [...roles]
      .reverse()
      .find((known) => roleValues[known].some((value) => values.includes(value)));
    const claimed = claimOf(payload, tenantClaim);
    // Operators do not need a tenant.
    const tenant = claimed === undefined && role === 'operator' ? 'default' : claimed;
    if (typeof tenant !== 'string' || !isTenant(tenant))
      throw new ServiceError('NOT_AUTHENTICATED', {
        cause: `its JWT names no tenant in the claim ${tenantClaim}`,
      });
    if (role === undefined)
      throw new ServiceError('NOT_AUTHENTICATED', {
        cause: `its JWT names no role in the claim ${roleClaim}`,
      });
    const { sub: name } = payload;
    if (!isCallerName(name))
      throw new ServiceError('NOT_AUTHENTICATED', {
        cause: 'its JWT names no subject of 1 to 255 characters that can be printed',
      });
    return {
      name,
      tenant,
      role,
      expireTimeMs: (payload.exp! + clockSkewSeconds) * 1000,
    };
  }
}

function isAboutToken(error: errors.JOSEError): boolean {
  return (
    error instanceof errors.JWTClaimValidationFailed ||
    error instanceof errors.JWTExpired ||
    error instanceof errors.JWTInvalid ||
    error instanceof errors.JWSInvalid ||
    error instanceof errors.JWSSignatureVerificationFailed ||
    error instanceof errors.JWKSNoMatchingKey ||
    error instanceof errors.JWKSMultipleMatchingKeys ||
    error instanceof errors.JOSEAlgNotAllowed ||
    error instanceof errors.JOSENotSupported
  );
}

/** A claim by name or, if no claim has that name, by a path with dots: `realm_access.roles`. */
function claimOf(payload: JWTPayload, name: string): unknown {
  if (Object.hasOwn(payload, name)) return payload[name];
  return name.split('.').reduce<unknown>((value, key) => {
    return typeof value === 'object' && value !== null && Object.hasOwn(value, key)
      ? (value as Record<string, unknown>)[key]
      : undefined;
  }, payload);
}

async function discover(issuer: string): Promise<string> {
  const answer = await fetch(`${issuer.replace(/\/$/, '')}/.well-known/openid-configuration`, {
    signal: AbortSignal.timeout(discoveryMs),
    redirect: 'error',
  });
  const found = (await answer.json()) as { issuer?: unknown; jwks_uri?: unknown };
  if (found.issuer !== issuer || typeof found.jwks_uri !== 'string')
    throw new Error(`The discovery document of ${issuer} is of another issuer, or names no keys`);
  // Keys that come over an unencrypted connection may be anybody's.
  if (!isSafeAddress(found.jwks_uri))
    throw new Error(`The discovery document of ${issuer} names keys that are not at an https:// address`);
  return found.jwks_uri;
}
