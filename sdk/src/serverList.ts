import { lookup } from 'node:dns/promises';
import { experimental, Metadata, status } from '@grpc/grpc-js';

/** Scheme of targets that list servers: `relora-servers:host:port,host:port`. */
export const listScheme = 'relora-servers';

/** Takes turns and leaves out servers that cannot be reached; other settings of a channel are not changed. */
export const takeTurns = JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] });

/** gRPC's resolvers accept one name, or only addresses: this one resolves several names. */
class ListResolver implements experimental.Resolver {
  private isDestroyed = false;
  private resolving: Promise<void> | undefined;

  constructor(
    private readonly target: experimental.GrpcUri,
    private readonly listener: experimental.ResolverListener,
  ) {}

  updateResolution(): void {
    this.isDestroyed = false;
    this.resolving ??= this.resolve().finally(() => (this.resolving = undefined));
  }

  destroy(): void {
    this.isDestroyed = true;
  }

  /** The first entry is the name used in requests and certificates, for all servers. */
  static getDefaultAuthority({ path }: experimental.GrpcUri): string {
    return path.split(',')[0]!;
  }

  private async resolve(): Promise<void> {
    const found = await Promise.allSettled(this.target.path.split(',').map(endpointsOf));
    if (this.isDestroyed) return;
    const endpoints = found.flatMap((result) => (result.status === 'fulfilled' ? result.value : []));
    if (endpoints.length > 0)
      return void this.listener(experimental.statusOrFromValue(endpoints), {}, null, '');
    const details = `None of ${this.target.path} has an address`;
    const error = { code: status.UNAVAILABLE, details, metadata: new Metadata() };
    this.listener(experimental.statusOrFromError(error), {}, null, '');
  }
}

async function endpointsOf(hostPort: string): Promise<experimental.Endpoint[]> {
  const [, host = '', port] = /^\[?(.*?)\]?:(\d+)$/.exec(hostPort) ?? [];
  const addresses = await lookup(host, { all: true });
  // A name with several addresses may be one server or several: all addresses take turns.
  return addresses.map(({ address }) => ({ addresses: [{ host: address, port: Number(port) }] }));
}

let isRegistered = false;

/** Registers the scheme with gRPC in this process, once it is needed. */
export function registerListScheme(): void {
  if (!isRegistered) experimental.registerResolver(listScheme, ListResolver);
  isRegistered = true;
}
