import { readFileSync } from 'node:fs';
import type { Address } from './address.js';
import type { TlsOptions } from './connections.js';
import { ReloraError } from './errors.js';

/** A token, or a function that returns one for each call, such as a JWT that is renewed before it expires. */
export type Token = string | (() => string | Promise<string>);

export interface CredentialOptions {
  /** Authenticates the caller; default: the variable RELORA_TOKEN, or none. */
  token?: Token;
  /** The tenant that an operator acts for; default: the variable RELORA_TENANT, or the tenant of the token. */
  tenant?: string;
  /**
   * Transport security. Default: unencrypted, for servers on the same machine, unless the address begins with https://, or RELORA_CA_FILE,
   * or RELORA_CERTIFICATE_FILE and RELORA_KEY_FILE, are set. `false`: these variables are not used.
   */
  tls?: TlsOptions | false;
  /** Allows sending the token unencrypted to another machine, where everybody on the network path can read and use it. */
  plainTextToken?: boolean;
}

/** Headers of every call that identify the caller. */
export type CallHeaders = () => Promise<Record<string, string>>;

export function callHeaders(
  { token = process.env.RELORA_TOKEN, tenant = process.env.RELORA_TENANT, plainTextToken }: CredentialOptions,
  { isSecure, isLoopback }: Pick<Address, 'isSecure' | 'isLoopback'>,
): CallHeaders {
  if (token && !isSecure && !isLoopback && plainTextToken !== true)
    throw new ReloraError(
      'The token would be sent in plain text: name the server as https://host:port, or set plainTextToken',
      { code: 'INVALID_ARGUMENT', reason: 'TOKEN_IN_PLAIN_TEXT' },
    );
  const named: Record<string, string> = tenant ? { 'relora-tenant': tenant } : {};
  return async () => {
    const value = typeof token === 'function' ? await token() : token;
    return value ? { ...named, authorization: `Bearer ${value}` } : named;
  };
}

/** The caller's TLS options, or the files that the environment names; undefined for neither. */
export function tlsOptions(
  tls: TlsOptions | false | undefined,
  environment = process.env,
): TlsOptions | undefined {
  if (tls !== undefined) return tls || undefined;
  const { RELORA_CA_FILE: ca, RELORA_CERTIFICATE_FILE: certificate, RELORA_KEY_FILE: key } = environment;
  if (!ca && !certificate && !key) return undefined;
  return {
    ...(ca ? { rootCertificates: readFileSync(ca) } : {}),
    ...(certificate ? { certificateChain: readFileSync(certificate) } : {}),
    ...(key ? { privateKey: readFileSync(key) } : {}),
  };
}
