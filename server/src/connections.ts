import type { Socket } from 'node:net';

/** `spare`: beyond the limit; for a few seconds it may ask for health and gets an error for everything else. */
export type Place = 'full' | 'spare';

interface Connection {
  readonly socket: Socket;
  readonly place: Place;
  /** Requests that are being answered. */
  requestCount: number;
}

export interface ConnectionLimits {
  connectionsMax: number;
  spareConnectionsMax: number;
  /** 0 for no limit. */
  addressConnectionsMax?: number;
}

/** How long a connection beyond the limit stays open, to receive its error. */
const spareMs = 5000;

/**
 * The connections of one port. When all places are taken, the connection that has been without a request for longest is closed to make
 * room, so idle and half-open connections keep nobody out. A newcomer gets a spare place only if all connections have requests.
 */
export class Connections {
  private readonly all = new Map<string, Connection>();
  /** Connections without a request, the longest idle first. */
  private readonly idle = new Set<Connection>();
  private spareCount = 0;
  /** Number of connections by address. */
  private readonly counts = new Map<string, number>();

  constructor(private readonly limits: ConnectionLimits) {}

  /** Gives a new connection its place, or destroys it. */
  add(socket: Socket): Place | undefined {
    const address = socket.remoteAddress ?? '';
    const count = (this.counts.get(address) ?? 0) + 1;
    const { addressConnectionsMax = 0 } = this.limits;
    const isTooMany = addressConnectionsMax > 0 && count > addressConnectionsMax;
    const place = isTooMany ? undefined : this.findPlace();
    if (place === undefined) {
      socket.destroy();
      return undefined;
    }
    const connection: Connection = { socket, place, requestCount: 0 };
    const peer = peerOf(socket);
    this.all.set(peer, connection);
    this.counts.set(address, count);
    let timer: NodeJS.Timeout | undefined;
    if (place === 'spare') {
      this.spareCount++;
      timer = setTimeout(() => socket.destroy(), spareMs);
    } else this.idle.add(connection);
    socket.once('close', () => {
      clearTimeout(timer);
      const left = this.counts.get(address)! - 1;
      if (left === 0) this.counts.delete(address);
      else this.counts.set(address, left);
      if (this.all.get(peer) === connection) this.all.delete(peer);
      this.idle.delete(connection);
      if (place === 'spare') this.spareCount--;
    });
    return place;
  }

  /** Counts a request of a connection. Call `end` when the request ends. */
  begin(peer: string): { place: Place; end(): void } {
    const connection = this.all.get(peer);
    if (connection === undefined) return { place: 'full', end: () => {} };
    connection.requestCount++;
    this.idle.delete(connection);
    return {
      place: connection.place,
      end: () => {
        connection.requestCount--;
        if (connection.requestCount === 0 && connection.place === 'full' && !connection.socket.destroyed)
          this.idle.add(connection);
      },
    };
  }

  /** Resolves when all connections are closed. */
  async closed(): Promise<void> {
    await Promise.all(
      [...this.all.values()].map(
        async ({ socket }) => await new Promise<void>((resolve) => socket.once('close', () => resolve())),
      ),
    );
  }

  destroyAll(): void {
    for (const { socket } of this.all.values()) socket.destroy();
  }

  get count(): number {
    return this.all.size;
  }

  private findPlace(): Place | undefined {
    if (this.all.size - this.spareCount < this.limits.connectionsMax) return 'full';
    const [longestIdle] = this.idle;
    if (longestIdle !== undefined) {
      // Removed from the lists at once: its place is taken now.
      this.idle.delete(longestIdle);
      this.all.delete(peerOf(longestIdle.socket));
      longestIdle.socket.destroy();
      return 'full';
    }
    return this.spareCount < this.limits.spareConnectionsMax ? 'spare' : undefined;
  }
}

export function peerOf({ remoteAddress, remotePort }: Pick<Socket, 'remoteAddress' | 'remotePort'>): string {
  return `${remoteAddress}:${remotePort}`;
}
