import { ReloraError } from './errors.js';

export interface Address {
  /** host:port, with brackets around an IPv6 address; several separated by commas. */
  target: string;
  /** Whether it lists several servers, which take turns. */
  isList: boolean;
  isSecure: boolean;
  /** Whether it is on this machine, so that nobody can read the connection. */
  isLoopback: boolean;
  /** The proxy through which the server is reached; undefined for none. */
  proxy: { variable: string; url: string } | undefined;
}

const form = 'host:port, for example 127.0.0.1:50051 or [::1]:50051, or https://host:port for TLS';
const hostPort = /^(?:(https?):\/\/)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})$/;

/** Reads an address, or several servers of one store separated by commas. Throws INVALID_ARGUMENT like parseOne. */
export function parseAddress(text: string, environment: NodeJS.ProcessEnv = process.env): Address {
  const parts = text.split(',');
  const all = parts.map((part) => parseOne(parts.length > 1 ? part.trim() : part, environment));
  const [first] = all as [Address];
  if (all.length === 1) return first;
  if (all.some(({ isSecure }) => isSecure !== first.isSecure)) {
    const message = `The addresses ${JSON.stringify(text)} must all begin with https://, or none of them`;
    throw new ReloraError(message, { code: 'INVALID_ARGUMENT', reason: 'ADDRESS_MALFORMED' });
  }
  const target = all.map((one) => one.target).join(',');
  const isLoopback = all.every((one) => one.isLoopback);
  return { target, isList: true, isSecure: first.isSecure, isLoopback, proxy: undefined }; // a proxy would resolve only one of them
}

/** Throws INVALID_ARGUMENT for an invalid address, because waiting for a server there would be in vain. */
function parseOne(text: string, environment: NodeJS.ProcessEnv): Address {
  const [, scheme, host, port] = hostPort.exec(text) ?? [];
  if (host === undefined || Number(port) < 1 || Number(port) > 65_535) {
    const message = `The address ${JSON.stringify(text)} is malformed: expected ${form}`;
    throw new ReloraError(message, { code: 'INVALID_ARGUMENT', reason: 'ADDRESS_MALFORMED' });
  }
  const bare = host.replace(/^\[|\]$/g, '');
  return {
    target: `${host}:${port}`,
    isList: false,
    isSecure: scheme === 'https',
    isLoopback: isLoopback(bare),
    proxy: isLoopback(bare) ? undefined : proxyOf(bare, environment),
  };
}

/** No proxy can reach a server on this machine, whatever the environment says. */
function isLoopback(host: string): boolean {
  return (
    host === 'localhost' ||
    host.endsWith('.localhost') ||
    host === '::1' ||
    /^(::ffff:)?127(\.\d{1,3}){3}$/.test(host)
  );
}

/** The proxy that grpc-js uses, by its rules: the first of three variables, unless one of two lists contains the host. */
function proxyOf(host: string, environment: NodeJS.ProcessEnv): Address['proxy'] {
  const variable = ['grpc_proxy', 'https_proxy', 'http_proxy'].find((name) => environment[name]);
  if (variable === undefined) return undefined;
  const without = (environment.no_grpc_proxy || environment.no_proxy || '').split(',').filter(Boolean);
  if (without.some((suffix) => host.endsWith(suffix))) return undefined;
  // Without the login, which may contain a password.
  const url = environment[variable]!.replace(/\/\/[^@/]*@/, '//');
  return { variable, url };
}
