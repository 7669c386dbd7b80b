import { Channel, ChannelCredentials, type ChannelOptions } from '@grpc/grpc-js';
import type { ClientFactory } from 'nice-grpc';
import type { Address } from './address.js';
import type { CallExtension } from './calls.js';
import { withChunksCopiedOnce } from './chunkEncoding.js';
import * as contract from './contract.js';
import { listScheme, registerListScheme, takeTurns } from './serverList.js';

export interface TlsOptions {
  rootCertificates?: Buffer;
  privateKey?: Buffer;
  certificateChain?: Buffer;
}

export interface StreamLimits {
  /** Streams per connection; servers and proxies allow 100 or more. */
  streamsPerConnection: number;
  connectionsMax: number;
}

export const defaultStreamLimits: StreamLimits = { streamsPerConnection: 100, connectionsMax: 16 };

/**
 * Bytes that may be sent to a client before it reads them: with the default of 64 KiB, a fast download waits for its reader again and
 * again.
 */
const flowControlWindow = 1 << 20;

/** The services of the contract over one connection. */
export type Services = ReturnType<typeof servicesOf>;

/** Opens connections to one server; none is shared with other clients in the process. */
export class Connector {
  private readonly credentials: ChannelCredentials;
  private readonly options: ChannelOptions;

  constructor(
    private readonly address: Address,
    tls: TlsOptions | undefined,
    private readonly factory: ClientFactory<CallExtension>,
  ) {
    this.credentials =
      tls || address.isSecure
        ? ChannelCredentials.createSsl(tls?.rootCertificates, tls?.privateKey, tls?.certificateChain)
        : ChannelCredentials.createInsecure();
    this.options = {
      // A dead connection is noticed within 80 s; more frequent pings would annoy proxies (gRFC A8).
      'grpc-node.flow_control_window': flowControlWindow,
      'grpc.keepalive_time_ms': 60_000,
      'grpc.keepalive_timeout_ms': 20_000,
      // So that a server that is started again is noticed soon.
      'grpc.initial_reconnect_backoff_ms': 200,
      'grpc.max_reconnect_backoff_ms': 2000,
      // Otherwise channels to one address would share a connection, and its limit of streams.
      'grpc.use_local_subchannel_pool': 1,
      'grpc.enable_http_proxy': address.proxy === undefined ? 0 : 1,
      ...(address.isList ? { 'grpc.service_config': takeTurns } : {}),
    };
  }

  open(): { services: Services; close: () => void } {
    const { target, isList } = this.address;
    if (isList) registerListScheme();
    const channel = new Channel(isList ? `${listScheme}:${target}` : target, this.credentials, this.options);
    return { services: servicesOf(this.factory, channel), close: () => channel.close() };
  }
}

interface Connection {
  services: Services;
  close: () => void;
  streamCount: number;
}

/**
 * Connections for streams, separate from that of calls with one answer: a stream occupies its place for hours, and calls beyond a
 * connection's limit wait silently. Streams beyond all limits wait here, in order, until others end.
 */
export class StreamConnections {
  private readonly connections: Connection[] = [];
  private readonly waiting: (() => void)[] = [];

  constructor(
    private readonly connector: Connector,
    private readonly limits: StreamLimits,
  ) {}

  /** Opens a stream of messages from the server. */
  async *read<T>(signal: AbortSignal, open: (services: Services) => AsyncIterable<T>): AsyncGenerator<T> {
    const connection = await this.take(signal);
    try {
      yield* open(connection.services);
    } finally {
      this.release(connection);
    }
  }

  /** Sends a stream of messages to the server; resolves with the answer. */
  async write<T>(signal: AbortSignal, send: (services: Services) => Promise<T>): Promise<T> {
    const connection = await this.take(signal);
    try {
      return await send(connection.services);
    } finally {
      this.release(connection);
    }
  }

  close(): void {
    for (const { close } of this.connections.splice(0)) close();
  }

  private async take(signal: AbortSignal): Promise<Connection> {
    for (;;) {
      signal.throwIfAborted();
      const found = this.connections.find(
        ({ streamCount }) => streamCount < this.limits.streamsPerConnection,
      );
      const connection = found ?? this.openAnother();
      if (connection !== undefined) {
        connection.streamCount++;
        return connection;
      }
      await this.turn(signal);
    }
  }

  private openAnother(): Connection | undefined {
    if (this.connections.length >= this.limits.connectionsMax) return undefined;
    const connection = { ...this.connector.open(), streamCount: 0 };
    this.connections.push(connection);
    return connection;
  }

  /** Resolves when a place may be free. */
  private turn(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const onTurn = () => {
        signal.removeEventListener('abort', onAbort);
        resolve();
      };
      const onAbort = () => {
        this.waiting.splice(this.waiting.indexOf(onTurn), 1);
        reject(signal.reason as Error);
      };
      signal.addEventListener('abort', onAbort, { once: true });
      this.waiting.push(onTurn);
    });
  }

  private release(connection: Connection): void {
    connection.streamCount--;
    const next = this.waiting.shift();
    if (next !== undefined) return next();
    // One connection is kept for future streams.
    if (connection.streamCount > 0 || this.connections.length === 1) return;
    const index = this.connections.indexOf(connection);
    if (index < 0) return;
    this.connections.splice(index, 1);
    connection.close();
  }
}

const training = withChunksCopiedOnce(contract.TrainingServiceDefinition);
const datasets = withChunksCopiedOnce(contract.DatasetServiceDefinition);
const weights = withChunksCopiedOnce(contract.WeightsServiceDefinition);

function servicesOf(factory: ClientFactory<CallExtension>, channel: Channel) {
  return {
    training: factory.create(training, channel),
    artifacts: factory.create(contract.ArtifactServiceDefinition, channel),
    datasets: factory.create(datasets, channel),
    models: factory.create(contract.ModelServiceDefinition, channel),
    weights: factory.create(weights, channel),
    webhooks: factory.create(contract.WebhookServiceDefinition, channel),
    server: factory.create(contract.ServerServiceDefinition, channel),
  };
}
