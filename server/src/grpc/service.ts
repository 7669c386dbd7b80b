import type { Metadata } from '@grpc/grpc-js';
import type { DeepPartial, MessageFns } from '@relora/sdk/contract';
import type { CertificateNames, Principal } from '../access/principal.js';
import type { ServiceError } from '../errors.js';
import { LargeBytesWriter } from './largeBytesWriter.js';

/** What a handler knows about its call. */
export interface CallContext {
  readonly metadata: Metadata;
  /** Address of the client, host:port. */
  readonly peer: string;
  /** The names in the client's certificate, if it had to present one. */
  certificate(): CertificateNames | undefined;
  /** The caller; known after accessMiddleware. */
  readonly caller: Principal;
  /** Aborted when the call is over for the client; its reason is a ServiceError. */
  readonly signal: AbortSignal;
  /** Ends the call with this error, whatever it waits for. */
  end(error: ServiceError): void;
}

// Messages of any type: the types of a method's messages are derived from its definition.
// eslint-disable-next-line @typescript-eslint/no-explicit-any
type AnyMessage = any;

/** A method as ts-proto describes it. */
export interface MethodDefinition {
  readonly name: string;
  readonly requestType: MessageFns<AnyMessage>;
  readonly requestStream: boolean;
  readonly responseType: MessageFns<AnyMessage>;
  readonly responseStream: boolean;
}

/** A service as ts-proto describes it. */
export interface ServiceDefinition {
  readonly fullName: string;
  readonly methods: Readonly<Record<string, MethodDefinition>>;
}

type MessageOf<Type> = Type extends MessageFns<infer Message> ? Message : never;

/**
 * Answers of a stream that are sent together, already encoded by their handler: an answer for many callers is encoded once, and a batch
 * costs little more than one message.
 */
export class EncodedAnswers {
  constructor(readonly messages: readonly Buffer[]) {}
}

type Handler<M extends MethodDefinition> = (
  request: M['requestStream'] extends true
    ? AsyncIterable<MessageOf<M['requestType']>>
    : MessageOf<M['requestType']>,
  context: CallContext,
) => M['responseStream'] extends true
  ? AsyncIterable<DeepPartial<MessageOf<M['responseType']>> | EncodedAnswers>
  : Promise<DeepPartial<MessageOf<M['responseType']>>>;

/** Handlers of a service: async functions, or async generators for streams of answers. */
export type Implementation<Definition extends ServiceDefinition> = {
  [Name in keyof Definition['methods']]: Handler<Definition['methods'][Name]>;
};

/** A method as it is served: only its handler sees messages, everything else sees bytes. */
export interface ServedMethod {
  /** For example `/relora.v1.TrainingService/GetJob`. */
  readonly path: string;
  readonly requestStream: boolean;
  readonly responseStream: boolean;
  /** The server has no such method: the client chose the path. */
  readonly isUnknown?: true;
  /** Throws a ServiceError that names the place of the problem. */
  decode(bytes: Buffer): unknown;
  encode(message: unknown): Buffer;
  /** Returns an encoded answer, or throws ANSWER_TOO_LARGE. */
  limit(bytes: Buffer): Buffer;
  handle(request: AnyMessage, context: CallContext): Promise<unknown> | AsyncIterable<unknown>;
}

export interface Call {
  readonly method: Pick<ServedMethod, 'path' | 'requestStream' | 'responseStream' | 'isUnknown'>;
  readonly context: CallContext;
}

/** Encoded answers, in batches that are sent together; exactly one for a method without a stream of answers. */
export type Answers = AsyncGenerator<readonly Buffer[], void, undefined>;

/** Wraps every call: what `next` yields are the answers, what it throws is the error. */
export type Middleware = (call: Call, next: (context: CallContext) => Answers) => Answers;

/** A message as it is sent. */
export function encoded<Message>(type: MessageFns<Message>, message: DeepPartial<Message>): Buffer {
  const writer = new LargeBytesWriter();
  type.encode(type.fromPartial(message), writer);
  return writer.finish();
}

/** Serves a complete request. */
export async function* answersTo(method: ServedMethod, request: unknown, context: CallContext): Answers {
  const result = method.handle(request, context);
  const one = (message: unknown): Buffer[] => [method.limit(method.encode(message))];
  if (!(Symbol.asyncIterator in result)) return yield one(await result);
  for await (const message of result)
    yield message instanceof EncodedAnswers
      ? message.messages.map((bytes) => method.limit(bytes))
      : one(message);
}
