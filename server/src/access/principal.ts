import { ServiceError } from '../errors.js';
import { roles, type Role } from '../roles.js';
import { defaultTenant } from '../store/tenantIds.js';

/** The caller. */
export interface Principal {
  /** For the audit log: the name of a token, the subject of a JWT. */
  readonly name: string;
  /** The tenant whose jobs, data sets and weights the call sees. */
  readonly tenant: string;
  /** `none`: not authenticated. */
  readonly role: Role | 'none';
  /** When its credentials expire; open streams end then. */
  readonly expireTimeMs?: number | null;
  /** Aborted when its access is revoked. */
  readonly revoked?: AbortSignal;
}

/** A caller that is not authenticated. */
export const nobody: Principal = { name: '', tenant: '', role: 'none' };

/** The credentials in a request, over gRPC or HTTP. */
export interface Credentials {
  /** Header `authorization`. */
  readonly authorization?: string | undefined;
  /** Header `relora-tenant`: the tenant that an operator acts for. */
  readonly tenant?: string | undefined;
  /** From a client certificate that the authority of the settings has signed. */
  readonly certificate?: CertificateNames | undefined;
}

/** The subject of a client's certificate: CN is its name, O its tenant, OU its role. */
export interface CertificateNames {
  readonly commonName: string;
  readonly organization: string;
  readonly unit: string;
}

/** Authenticates a caller. Rejects with NOT_AUTHENTICATED. */
export type Authenticate = (credentials: Credentials) => Promise<Principal>;

/** A server without a login: everybody who reaches it is an operator. */
export const openToAll: Authenticate = async ({ tenant }) =>
  actingFor({ name: 'anyone', tenant: defaultTenant, role: 'operator' }, tenant);

const tenantPattern = /^[a-z][a-z0-9-]{0,30}[a-z0-9]$/;

export function isTenant(text: string): boolean {
  return tenantPattern.test(text);
}

/**
 * The name of a caller comes from outside, and goes into the audit log, onto terminals and into rows, which do not accept every character.
 */
export function isCallerName(value: unknown): value is string {
  return typeof value === 'string' && /^[^\p{Cc}\p{Cs}\u2028\u2029]{1,255}$/u.test(value);
}

/** The caller in the tenant that its request names; only operators may name another tenant. Throws ROLE_TOO_LOW. */
export function actingFor(principal: Principal, tenant: string | undefined): Principal {
  if (tenant === undefined || tenant === '' || tenant === principal.tenant) return principal;
  requireRole(principal, 'operator', 'naming another tenant');
  if (!isTenant(tenant)) {
    const expected = '2 to 32 of a-z, 0-9 and -, the first a letter and the last none of -';
    throw new ServiceError('REQUEST_INVALID', {
      problems: [{ field: 'relora-tenant', expected, got: JSON.stringify(tenant.slice(0, 40)) }],
    });
  }
  return { ...principal, tenant };
}

/** Throws NOT_AUTHENTICATED for an unauthenticated caller, ROLE_TOO_LOW for a lower role. */
export function requireRole({ role }: Principal, needed: Role, action: string): void {
  if (role === 'none') throw new ServiceError('NOT_AUTHENTICATED', { cause: 'no token came with it' });
  if (roles.indexOf(role) < roles.indexOf(needed))
    throw new ServiceError('ROLE_TOO_LOW', { action, role, needed });
}
