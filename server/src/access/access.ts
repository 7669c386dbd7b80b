import type { Logger } from 'pino';
import type { Config } from '../config.js';
import { ServiceError } from '../errors.js';
import { IdentityProvider } from './identityProvider.js';
import {
  actingFor,
  isCallerName,
  isTenant,
  nobody,
  openToAll,
  type Authenticate,
  type CertificateNames,
  type Principal,
} from './principal.js';
import { roles } from '../roles.js';
import { defaultTenant } from '../store/tenantIds.js';
import { tokenPrefix } from './tokenFile.js';
import { TokenList } from './tokenList.js';

/** How this server authenticates callers. */
export interface Access {
  authenticate: Authenticate;
  /** The tokens of a file, if the settings name one. */
  tokens: TokenList | undefined;
  close(): void;
}

type AccessConfig = Pick<
  Config,
  | 'tlsClientCa'
  | 'tokenFile'
  | 'oidcIssuer'
  | 'oidcAudience'
  | 'oidcJwks'
  | 'oidcTenantClaim'
  | 'oidcRoleClaim'
  | 'oidcRoles'
>;

function asksWhoCalls({ tokenFile, oidcIssuer, tlsClientCa }: AccessConfig): boolean {
  return tokenFile !== '' || oidcIssuer !== '' || tlsClientCa !== '';
}

/** Opens what the settings name. Throws TokenFileInvalid. */
export async function openAccess(config: AccessConfig, log: Logger): Promise<Access> {
  if (!asksWhoCalls(config)) return { authenticate: openToAll, tokens: undefined, close: () => {} };
  const tokens = config.tokenFile === '' ? undefined : await TokenList.open(config.tokenFile, log);
  const provider =
    config.oidcIssuer === ''
      ? undefined
      : new IdentityProvider({
          issuer: config.oidcIssuer,
          audience: config.oidcAudience,
          jwks: config.oidcJwks,
          tenantClaim: config.oidcTenantClaim,
          roleClaim: config.oidcRoleClaim,
          roleValues: config.oidcRoles,
        });
  const authenticate: Authenticate = async ({ authorization, tenant, certificate }) => {
    if (authorization === undefined && certificate !== undefined)
      return actingFor(ofCertificate(certificate), tenant);
    if (authorization === undefined) return nobody;
    const token = /^bearer +([^ ]+)$/i.exec(authorization)?.[1];
    if (token === undefined)
      throw new ServiceError('NOT_AUTHENTICATED', { cause: 'its authorization is not `Bearer TOKEN`' });
    const isOurs = token.startsWith(tokenPrefix) || provider === undefined;
    if (isOurs && tokens === undefined)
      throw new ServiceError('NOT_AUTHENTICATED', {
        cause: 'this server takes no tokens of its own',
      });
    return actingFor(isOurs ? tokens!.find(token) : await provider!.read(token), tenant);
  };
  return { authenticate, tokens, close: () => tokens?.close() };
}

function ofCertificate({ commonName, organization, unit }: CertificateNames): Principal {
  const role = roles.find((known) => known === unit);
  const tenant = organization === '' && role === 'operator' ? defaultTenant : organization;
  const refuse = (lacks: string): never => {
    throw new ServiceError('NOT_AUTHENTICATED', { cause: `its certificate names no ${lacks}` });
  };
  if (!isCallerName(commonName)) refuse('caller (CN)');
  if (role === undefined) return refuse('role (OU)');
  if (!isTenant(tenant)) refuse('tenant (O)');
  return { name: commonName, tenant, role };
}
