import { createServer, type AddressInfo, type Server as TcpServer, type Socket } from 'node:net';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:tls';
import {
  ResponderBuilder,
  Server,
  ServerCredentials,
  ServerInterceptingCall,
  type ConnectionInjector,
  type ServerInterceptor,
} from '@grpc/grpc-js';
import type { Certificates } from '../certificates.js';
import type { Address, Config } from '../config.js';
import { Connections } from '../connections.js';
import { ServiceError } from '../errors.js';
import { checkMessage } from './checkMessage.js';
import type { Descriptors } from './descriptors.js';
import { limitFrames } from './frameLimits.js';
import { handlersOf } from './grpcInternals.js';
import { compose } from './middleware.js';
import { awaitPreface } from './preface.js';
import { ServedCall } from './servedCall.js';
import { serverOptions } from './serverOptions.js';
import {
  answersTo,
  encoded,
  type CallContext,
  type Implementation,
  type Middleware,
  type ServedMethod,
  type ServiceDefinition,
} from './service.js';

export interface GrpcServerOptions {
  config: Config;
  descriptors: Descriptors;
  /** The first is the outermost. */
  middleware: readonly Middleware[];
  /** Aborted when the server begins to stop: calls that wait for their client then end. */
  stopping: AbortSignal;
  /** Undefined: unencrypted. */
  certificates?: Certificates | undefined;
}

/** Time that clients have, after the last call has been answered, to receive the answer and close. */
const closingMs = 500;

/**
 * Serves gRPC. Connections are accepted and counted here, and grpc-js speaks the protocol on them. Each call goes to a ServedCall before
 * grpc-js itself handles any message.
 */
export class GrpcServer {
  private readonly server: Server;
  private readonly tcp: TcpServer;
  /** Never listens: it is given connections after they were counted, and passes them on once they are encrypted. */
  private readonly tls: TlsServer | undefined;
  private readonly injector: ConnectionInjector;
  private readonly connections: Connections;
  private readonly methods = new Map<string, ServedMethod>();
  private readonly calls = new Set<ServedCall>();
  private readonly middleware: Middleware;
  private onCallEnd = (): void => {};

  constructor(private readonly options: GrpcServerOptions) {
    const { config } = options;
    this.middleware = compose(...options.middleware);
    this.connections = new Connections(config);
    this.server = new Server({ ...serverOptions(config), interceptors: [this.interceptor()] });
    this.injector = this.server.createConnectionInjector(ServerCredentials.createInsecure());
    answerUnknown(this.server);
    limitFrames(this.server, config);
    this.tcp = createServer({ noDelay: true }, (socket) => this.accept(socket));
    this.tls = this.makeTls(options);
    options.stopping.addEventListener('abort', () => {
      for (const call of this.calls) call.stop();
    });
  }

  /** Call before `listen`. */
  add<Definition extends ServiceDefinition>(
    { fullName, methods }: Definition,
    implementation: Implementation<Definition>,
  ): void {
    this.addMethods(
      Object.entries(methods).map(
        ([key, { name, requestType, requestStream, responseType, responseStream }]) => ({
          path: `/${fullName}/${name}`,
          requestStream,
          responseStream,
          decode: (bytes) => requestType.decode(bytes),
          encode: (message) => encoded(responseType, message as never),
          handle: (implementation as Record<string, ServedMethod['handle']>)[key]!.bind(implementation),
        }),
      ),
    );
  }

  addMethods(methods: readonly Omit<ServedMethod, 'limit'>[]): void {
    const { messages, requests } = this.options.descriptors;
    const { messageFieldsMax: fieldsMax, textBytesMax } = this.options.config;
    for (const method of methods) {
      const { path, decode } = method;
      const request = requests.get(path);
      if (request === undefined) throw new Error(`No descriptor of ${path}`);
      this.methods.set(path, {
        ...method,
        decode: (bytes) => {
          checkMessage(bytes, request, messages, { fieldsMax, textBytesMax });
          return decode(bytes);
        },
        limit: (bytes) => {
          const { messageBytesMax } = this.options.config;
          if (bytes.length > messageBytesMax)
            throw new ServiceError('ANSWER_TOO_LARGE', { answerBytes: bytes.length, messageBytesMax });
          return bytes;
        },
      });
      this.server.addService({ [path]: passingBytes(path) }, { [path]: unreachable });
    }
  }

  /** Calls a method with one request that did not come over gRPC, with the same checks, middleware and handler. */
  async *call(path: string, request: Buffer, context: CallContext): AsyncGenerator<Buffer, void, undefined> {
    const method = this.methods.get(path);
    if (method === undefined) throw new Error(`No method ${path}`);
    const answers = this.middleware({ method, context }, (inner) =>
      answersTo(method, method.decode(request), inner),
    );
    for await (const batch of answers) yield* batch;
  }

  /** The port as bound. Rejects if the address cannot be bound. */
  async listen({ host, port }: Address): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.tcp.once('error', reject);
      this.tcp.listen(port, host, () => {
        this.tcp.off('error', reject);
        resolve();
      });
    });
    return (this.tcp.address() as AddressInfo).port;
  }

  /** Accepts no new calls, lets those in progress end, and closes; calls that last longer than the time are aborted. */
  async drain(timeoutMs: number): Promise<void> {
    this.tcp.close();
    // Asks clients to use another connection, and lets the calls of this one end.
    this.injector.drain(timeoutMs);
    await within(timeoutMs, this.allEnded());
    await within(closingMs, this.connections.closed());
    this.close();
  }

  /** Aborts everything that is open. */
  close(): void {
    this.tcp.close();
    this.connections.destroyAll();
    this.server.forceShutdown();
  }

  private interceptor(): ServerInterceptor {
    return ({ path }, transport) => {
      const serve = (): void => {
        const method = this.methods.get(path) ?? unknownMethod(path);
        const { messageBytesMax, requestSilenceSeconds, readerSilenceSeconds } = this.options.config;
        const call = new ServedCall(transport, method, {
          messageBytesMax,
          requestSilenceSeconds,
          readerSilenceSeconds,
        });
        call.start(() => {
          const { place, end } = this.connections.begin(call.peer);
          const isHealth = path.startsWith('/grpc.health.');
          this.calls.add(call);
          if (this.options.stopping.aborted) call.stop();
          return {
            middleware:
              place === 'spare' && !isHealth ? compose(this.middleware, this.refuse) : this.middleware,
            onEnd: () => {
              this.calls.delete(call);
              end();
              this.onCallEnd();
            },
          };
        });
      };
      // `next` would call grpc-js's own handlers.
      return new ServerInterceptingCall(transport, new ResponderBuilder().withStart(serve).build());
    };
  }

  /** The innermost middleware, so that a refusal is counted like any other error. */
  private readonly refuse: Middleware = () => {
    throw new ServiceError('CONNECTIONS_FULL', { connectionsMax: this.options.config.connectionsMax });
  };

  private accept(socket: Socket): void {
    // Needed because nobody else listens for errors before grpc-js does.
    socket.on('error', () => socket.destroy());
    if (this.connections.add(socket) === undefined) return;
    if (this.tls === undefined) this.greet(socket);
    else this.tls.emit('connection', socket);
  }

  private greet(socket: Socket): void {
    awaitPreface(socket, this.options.config.headerSeconds * 1000, () =>
      this.injector.injectConnection(socket),
    );
  }

  private makeTls({ certificates, config }: GrpcServerOptions): TlsServer | undefined {
    if (certificates === undefined) return undefined;
    const handshakeTimeout = config.headerSeconds * 1000;
    const options = { ...certificates.options, ALPNProtocols: ['h2'], handshakeTimeout };
    const tls = createTlsServer(options, (socket) => {
      socket.on('error', () => socket.destroy());
      this.greet(socket);
    });
    tls.on('tlsClientError', (_, socket) => socket.destroy());
    certificates.onChange((changed) => tls.setSecureContext(changed));
    return tls;
  }

  private async allEnded(): Promise<void> {
    while (this.calls.size > 0) await new Promise<void>((resolve) => (this.onCallEnd = resolve));
  }
}

/** Makes grpc-js pass on calls of unknown methods, too, which it would answer itself without a reason. */
function answerUnknown(server: Server): void {
  const handlers = handlersOf(server);
  const known = handlers.get.bind(handlers);
  handlers.get = (path) => {
    const { requestDeserialize, responseSerialize } = passingBytes(path);
    const bytes = { deserialize: requestDeserialize, serialize: responseSerialize };
    return known(path) ?? { func: unreachable, ...bytes, type: 'bidi', path };
  };
}

function unknownMethod(path: string): ServedMethod {
  const refuse = (): never => {
    throw new ServiceError('METHOD_UNKNOWN', { path });
  };
  return {
    path,
    isUnknown: true,
    requestStream: true,
    responseStream: true,
    decode: refuse,
    encode: refuse,
    limit: refuse,
    handle: refuse,
  };
}

/** A method definition for grpc-js whose messages stay bytes. */
function passingBytes(path: string) {
  const pass = (bytes: Buffer): Buffer => bytes;
  return {
    path,
    requestStream: true,
    responseStream: true,
    requestSerialize: pass,
    requestDeserialize: pass,
    responseSerialize: pass,
    responseDeserialize: pass,
  };
}

function unreachable(): never {
  throw new Error('Calls are taken by the interceptor');
}

/** Waits for a promise, but only up to a time limit. */
async function within(timeoutMs: number, something: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, timeoutMs)));
  await Promise.race([something, late]);
  clearTimeout(timer);
}
