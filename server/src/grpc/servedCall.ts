import { constants } from 'node:http2';
import { status, type Metadata, type ServerInterceptor } from '@grpc/grpc-js';
import { nobody } from '../access/principal.js';
import { subjectNames } from '../certificates.js';
import { ServiceError } from '../errors.js';
import { reuse, takeHeadroom } from '../headroom.js';
import { streamOf } from './grpcInternals.js';
import { toStatus } from './statusDetails.js';
import { answersTo, type Answers, type CallContext, type Middleware, type ServedMethod } from './service.js';

/** The side of a call that grpc-js passes to an interceptor. */
type Transport = Parameters<ServerInterceptor>[1];
type TransportStatus = Parameters<Transport['sendStatus']>[0];

export interface CallLimits {
  /** Longest message in either direction. */
  messageBytesMax: number;
  /** Time to wait for a message from the client before the call ends. */
  requestSilenceSeconds: number;
  /** Time in which a client with pending answers must receive some of them. */
  readerSilenceSeconds: number;
}

/** Limit for answers that are sent but not received by the client; above it, the handler waits. */
const unsentBytesMax = 256 * 1024;
/** Overhead counted per message, or batch, in addition to its bytes, which are few in an event: at most 60 are pending. */
const messageCostBytes = 4096;

/**
 * One call on grpc-js. Its requests are read one at a time when wanted, and its answers are written no faster than the client receives
 * them. However it ends, including refusals by grpc-js itself, it goes through the same middleware.
 */
export class ServedCall {
  readonly peer: string;
  private readonly over = new AbortController();
  private readonly send: Transport['sendStatus'];
  /** Waits for the next message of the client. */
  private reader: { resolve(message: Buffer | undefined): void; reject(error: unknown): void } | undefined;
  /** Waits until the client has received answers. */
  private writer: (() => void) | undefined;
  private unsentBytes = 0;
  private hasWritten = false;
  private hasEnded = false;
  private isStopping = false;

  constructor(
    private readonly transport: Transport,
    private readonly method: ServedMethod,
    private readonly limits: CallLimits,
  ) {
    this.peer = transport.getPeer();
    this.send = transport.sendStatus.bind(transport);
    // grpc-js sends its own refusals here, past all interceptors.
    transport.sendStatus = (refusal) => this.fail(this.translate(refusal));
  }

  /** Serves the call to its end, unless the client has already left: then `begin` is not called. */
  start(begin: () => { middleware: Middleware; onEnd(): void }): void {
    this.transport.start({
      onReceiveMetadata: (metadata) => {
        const { middleware, onEnd } = begin();
        void this.run(middleware, metadata).finally(onEnd);
      },
      onReceiveMessage: (message) => this.takeReader()?.resolve(message as Buffer),
      onReceiveHalfClose: () => this.takeReader()?.resolve(undefined),
      onCancel: () => {
        if (!this.hasEnded) this.fail(new ServiceError('CALL_CANCELLED', {}));
      },
    });
  }

  /** Ends the call if it waits for its client; a call that computes an answer may still send it. */
  stop(): void {
    this.isStopping = true;
    this.takeReader()?.reject(new ServiceError('SERVER_STOPPING', {}));
    this.wakeWriter();
  }

  private async run(middleware: Middleware, metadata: Metadata): Promise<void> {
    const context: CallContext = {
      metadata,
      peer: this.peer,
      certificate: () => {
        const { sslPeerCertificate } = this.transport.getAuthContext();
        return sslPeerCertificate && subjectNames(sslPeerCertificate);
      },
      caller: nobody,
      signal: this.over.signal,
      end: (error) => this.fail(error),
    };
    try {
      const answers = middleware({ method: this.method, context }, (inner) => this.answers(inner));
      for await (const answer of answers) await this.write(answer);
      this.end({ code: status.OK, details: '', metadata: null });
    } catch (error) {
      this.end(toStatus(error));
    }
  }

  private async *answers(context: CallContext): Answers {
    const { method } = this;
    yield* answersTo(method, method.requestStream ? this.requests() : await this.onlyRequest(), context);
  }

  private async *requests(): AsyncGenerator<unknown, void, undefined> {
    for (;;) {
      const bytes = await this.read();
      if (bytes === undefined) return;
      yield this.method.decode(bytes);
    }
  }

  private async onlyRequest(): Promise<unknown> {
    const bytes = await this.read();
    if (bytes === undefined || (await this.read()) !== undefined) {
      const got = bytes === undefined ? 'none' : 'more than one';
      throw new ServiceError('MESSAGE_UNREADABLE', { field: '', at: 0, expected: 'one message', got });
    }
    return this.method.decode(bytes);
  }

  /** The next message of the client; undefined after the last. */
  private async read(): Promise<Buffer | undefined> {
    const { requestSilenceSeconds: seconds } = this.limits;
    let timer: NodeJS.Timeout | undefined;
    try {
      return await new Promise((resolve, reject) => {
        if (this.over.signal.aborted) return reject(this.over.signal.reason as Error);
        if (this.isStopping) return reject(new ServiceError('SERVER_STOPPING', {}));
        timer = setTimeout(() => this.fail(new ServiceError('CLIENT_SILENT', { seconds })), seconds * 1000);
        this.reader = { resolve, reject };
        this.transport.startRead();
      });
    } finally {
      clearTimeout(timer);
    }
  }

  private async write(batch: readonly Buffer[]): Promise<void> {
    this.over.signal.throwIfAborted();
    // grpc-js sends the headers with the first message, so the first one has to go through it.
    const first = this.hasWritten ? [] : batch.slice(0, 1);
    const others = batch.slice(first.length);
    for (const message of first) this.transport.sendMessage(message, this.owed(message.length));
    this.hasWritten ||= first.length > 0;
    if (others.length > 0) this.sendTogether(others);
    while (this.unsentBytes > unsentBytesMax && !this.over.signal.aborted) {
      if (this.isStopping) throw new ServiceError('SERVER_STOPPING', {});
      await this.taken();
    }
  }

  /** Sends in one write: separately, each small message costs grpc-js and HTTP/2 many times what its bytes cost. */
  private sendTogether(messages: readonly Buffer[]): void {
    const stream = streamOf(this.transport);
    if (stream.destroyed || stream.writableEnded) return; // the call is being cancelled
    const frames = framed(messages);
    const taken = this.owed(frames.length);
    stream.write(frames, (error) => {
      taken();
      // After an error, parts of the frames may still be in use by the stream.
      if (!error) reuse(frames);
    });
  }

  /** Counts bytes that are being sent; call the result when they were handed to the connection. */
  private owed(bytes: number): () => void {
    const cost = bytes + messageCostBytes;
    this.unsentBytes += cost;
    return () => {
      this.unsentBytes -= cost;
      if (this.unsentBytes <= unsentBytesMax) this.wakeWriter();
    };
  }

  /** Resolves when the connection has taken enough of the answers, or the call was reset. */
  private async taken(): Promise<void> {
    const { readerSilenceSeconds: seconds } = this.limits;
    let before = this.unsentBytes;
    const timer = setInterval(() => {
      if (this.unsentBytes < before) {
        before = this.unsentBytes;
        return;
      }
      this.fail(new ServiceError('CLIENT_NOT_READING', { seconds }));
      this.reset();
    }, seconds * 1000);
    await new Promise<void>((resolve) => (this.writer = resolve));
    clearInterval(timer);
  }

  /** Resets the stream: a status would wait behind the answers that the client does not receive, and they would stay in memory. */
  private reset(): void {
    streamOf(this.transport).close(constants.NGHTTP2_CANCEL);
  }

  /** Ends whatever the call waits for; the handler is notified through its signal. */
  private fail(error: ServiceError): void {
    this.over.abort(error);
    this.takeReader()?.reject(error);
    this.wakeWriter();
  }

  private end(result: TransportStatus): void {
    if (this.hasEnded) return;
    this.hasEnded = true;
    this.send(result);
  }

  private takeReader(): ServedCall['reader'] {
    const { reader } = this;
    this.reader = undefined;
    return reader;
  }

  private wakeWriter(): void {
    this.writer?.();
    this.writer = undefined;
  }

  /** The error of the catalog for a status of grpc-js, which reports mistakes of the client as its own. */
  private translate({ code, details = '' }: TransportStatus): ServiceError {
    const { messageBytesMax } = this.limits;
    if (code === status.RESOURCE_EXHAUSTED)
      return new ServiceError('MESSAGE_TOO_LARGE', { limit: messageBytesMax, unit: 'bytes' });
    if (code === status.DEADLINE_EXCEEDED) return new ServiceError('DEADLINE_PASSED', {});
    if (code === status.UNIMPLEMENTED) return new ServiceError('ENCODING_UNKNOWN', {});
    const unreadable = (expected: string, got: string): ServiceError =>
      new ServiceError('MESSAGE_UNREADABLE', { field: '', at: 0, expected, got });
    if (details.includes('decompress'))
      return unreadable('what grpc-encoding says', 'bytes that do not unpack');
    if (details.includes('timeout'))
      return unreadable('a grpc-timeout of up to eight digits and a unit', 'another');
    return new ServiceError('CALL_CANCELLED', {});
  }
}

/** Header of a message on the wire: one byte for "not compressed", and four for its length. */
const frameHeaderBytes = 5;

/** Messages with their headers, as on the wire. */
function framed(messages: readonly Buffer[]): Buffer {
  const inPlace = messages.length === 1 && takeHeadroom(messages[0]!, frameHeaderBytes);
  if (inPlace) {
    writeFrameHeader(inPlace, 0, messages[0]!.length);
    return inPlace;
  }
  const frames = Buffer.allocUnsafe(messages.reduce((sum, { length }) => sum + frameHeaderBytes + length, 0));
  let at = 0;
  for (const message of messages) {
    writeFrameHeader(frames, at, message.length);
    at += frameHeaderBytes;
    at += message.copy(frames, at);
  }
  return frames;
}

function writeFrameHeader(frames: Buffer, at: number, messageBytes: number): void {
  frames[at] = 0;
  frames.writeUInt32BE(messageBytes, at + 1);
}
