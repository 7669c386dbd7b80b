import { lookup as systemLookup, type LookupAddress, type LookupOptions } from 'node:dns';
import { BlockList, isIP, isIPv4 } from 'node:net';

/**
 * Ranges within 2000::/3 that are refused: they stand for other addresses, or are not routed. Outside 2000::/3 there are no public
 * addresses.
 */
const closedIpv6: [string, number][] = [
  ['2001::', 23], // Teredo, which contains an IPv4 address, and other protocols
  ['2001:db8::', 32],
  ['2002::', 16], // 6to4, which contains an IPv4 address
  ['3fff::', 20],
];
const closedIpv4: [string, number][] = [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16], // link-local: clouds serve credentials there
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.0.2.0', 24],
  ['192.88.99.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['198.51.100.0', 24],
  ['203.0.113.0', 24],
  ['224.0.0.0', 4],
  ['240.0.0.0', 4],
];

const closed = new BlockList();
for (const [network, bits] of closedIpv4) closed.addSubnet(network, bits, 'ipv4');
for (const [network, bits] of closedIpv6) closed.addSubnet(network, bits, 'ipv6');
const routedIpv6 = new BlockList();
routedIpv6.addSubnet('2000::', 3, 'ipv6');
const mappedIpv4 = new BlockList();
mappedIpv4.addSubnet('::ffff:0:0', 96, 'ipv6');
const loopback = new BlockList();
loopback.addSubnet('127.0.0.0', 8, 'ipv4');
loopback.addAddress('::1', 'ipv6');

/** An address that messages must not be sent to. The text is for the tenant, and does not contain resolved addresses. */
export class AddressRefused extends Error {
  override name = 'AddressRefused';
  readonly code = 'ADDRESS_REFUSED';
}

export type Resolve = (
  hostname: string,
  options: LookupOptions & { all: true },
  callback: (error: NodeJS.ErrnoException | null, addresses: LookupAddress[]) => void,
) => void;

/** Which addresses the server may send messages to: public ones, and the networks that the settings allow. */
export class Reachable {
  private readonly allowed = new BlockList();

  constructor(
    networks: readonly string[],
    private readonly resolve: Resolve = systemLookup,
  ) {
    for (const network of networks) {
      const [address = '', bits] = network.split('/');
      const family = isIPv4(address) ? 'ipv4' : 'ipv6';
      this.allowed.addSubnet(address, Number(bits ?? (family === 'ipv4' ? 32 : 128)), family);
    }
  }

  isAllowed(address: string): boolean {
    if (isIP(address) === 0 || address.includes('%')) return false;
    const family = isIPv4(address) ? 'ipv4' : 'ipv6';
    // A BlockList recognizes an IPv4 address that is written as IPv6.
    if (this.allowed.check(address, family)) return true;
    if (closed.check(address, family)) return false;
    return family === 'ipv4' || mappedIpv4.check(address, 'ipv6') || routedIpv6.check(address, 'ipv6');
  }

  /** Why a URL cannot be that of a webhook, as far as the URL itself shows; names are looked up when a message is sent. */
  problemOf(url: URL): string | undefined {
    const host = hostOf(url);
    const isPlain = url.protocol === 'http:';
    if (url.protocol !== 'https:' && !isPlain) return 'an https:// address';
    if (url.username !== '' || url.password !== '') return 'an address without user and password';
    if (isPlain && !isLoopback(host))
      return 'an https:// address (http:// only for 127.0.0.1 and [::1], if RELORA_WEBHOOK_NETWORKS has them)';
    if (isIP(host) !== 0 && !this.isAllowed(host))
      return 'a public address, or one of the networks of RELORA_WEBHOOK_NETWORKS';
    return undefined;
  }

  /**
   * The lookup of a connection: it checks the addresses, and the connection is made to one of these. So it has no effect if the name
   * resolves to another address a moment later. If one address is refused, all are.
   */
  readonly lookup = (
    hostname: string,
    options: LookupOptions,
    callback: (
      error: NodeJS.ErrnoException | null,
      address: string | LookupAddress[],
      family?: number,
    ) => void,
  ): void => {
    this.resolve(hostname, { ...options, all: true }, (error, addresses) => {
      if (error !== null) return callback(error, []);
      if (addresses.length === 0 || addresses.some(({ address }) => !this.isAllowed(address)))
        return callback(
          new AddressRefused('its name leads to an address that the settings do not allow'),
          [],
        );
      if (options.all) callback(null, addresses);
      else callback(null, addresses[0]!.address, addresses[0]!.family);
    });
  };
}

/** Without the brackets of IPv6. */
export function hostOf({ hostname }: URL): string {
  return hostname.replace(/^\[(.*)\]$/, '$1');
}

function isLoopback(host: string): boolean {
  return isIP(host) !== 0 && loopback.check(host, isIPv4(host) ? 'ipv4' : 'ipv6');
}
