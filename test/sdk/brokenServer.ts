import { createHash } from 'node:crypto';
import {
  ArtifactServiceDefinition,
  DatasetServiceDefinition,
  ErrorInfo,
  ModelServiceDefinition,
  RetryInfo,
  RpcStatus,
  TrainingServiceDefinition,
  type ArtifactServiceImplementation,
  type DatasetServiceImplementation,
  type DeepPartial,
  type JobEvent,
  type ModelServiceImplementation,
  type TrainingServiceImplementation,
} from '@relora/sdk/contract';
import { ReloraClient, type ClientOptions } from '@relora/sdk';
import { createServer, ServerError, Status, type CallContext } from 'nice-grpc';
import { onTestFinished } from 'vitest';

type Handlers = Partial<
  TrainingServiceImplementation &
    ArtifactServiceImplementation &
    DatasetServiceImplementation &
    ModelServiceImplementation
>;

const definitions = [
  TrainingServiceDefinition,
  ArtifactServiceDefinition,
  DatasetServiceDefinition,
  ModelServiceDefinition,
];

/** A server that implements a few methods, usually with faults, and a client of it with short retry delays. */
export async function brokenServer(handlers: Handlers, options: ClientOptions = {}): Promise<ReloraClient> {
  const server = createServer();
  for (const definition of definitions) {
    const methods = Object.keys(definition.methods).map((name) => [
      name,
      handlers[name as keyof Handlers] ?? (() => Promise.reject(new ServerError(Status.UNIMPLEMENTED, name))),
    ]);
    server.add(definition as typeof TrainingServiceDefinition, Object.fromEntries(methods));
  }
  const port = await server.listen('127.0.0.1:0');
  const client = new ReloraClient({
    address: `127.0.0.1:${port}`,
    ...options,
    retries: { initialDelayMs: 1, maxDelayMs: 4, ...options.retries },
  });
  onTestFinished(() => {
    client.close();
    server.forceShutdown();
  });
  return client;
}

export const unavailable = () => new ServerError(Status.UNAVAILABLE, 'on purpose');

/** What a client gets when a stream ends without trailers. */
export const reset = () => new ServerError(Status.INTERNAL, 'Received RST_STREAM with code 0');

/** How the end of a stream arrives that the server cut off because its reader was slow. */
export const cutOff = () => new ServerError(Status.CANCELLED, 'Call cancelled');

/** An error with details, like those of the real server. */
export function refusal(
  context: CallContext,
  code: Status,
  reason: string,
  retryDelayMs?: number,
): ServerError {
  const any = (type: string, value: Uint8Array) => ({
    typeUrl: `type.googleapis.com/google.rpc.${type}`,
    value: Buffer.from(value),
  });
  const details = [any('ErrorInfo', ErrorInfo.encode(ErrorInfo.fromPartial({ reason })).finish())];
  if (retryDelayMs !== undefined) {
    const retryDelay = { seconds: Math.floor(retryDelayMs / 1000), nanos: (retryDelayMs % 1000) * 1e6 };
    details.push(any('RetryInfo', RetryInfo.encode(RetryInfo.fromPartial({ retryDelay })).finish()));
  }
  const status = RpcStatus.encode({ code, message: reason, details }).finish();
  context.trailer.set('grpc-status-details-bin', status);
  return new ServerError(code, reason);
}

export function step(sequence: number, fields: DeepPartial<JobEvent> = {}): { event: DeepPartial<JobEvent> } {
  return { event: { sequence, step: { step: sequence - 1, loss: 1 }, ...fields } };
}

export const heartbeat = (sequence: number) => ({ event: { sequence, heartbeat: {} } });

/** An artifact whose files have these contents. */
export function artifactOf(contents: Record<string, Buffer>) {
  const files = Object.entries(contents).map(([fileName, bytes]) => ({
    fileName,
    sizeBytes: bytes.length,
    sha256: createHash('sha256').update(bytes).digest('hex'),
  }));
  const sizeBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
  return { name: 'jobs/job-1/artifacts/model', files, sizeBytes };
}

export async function sequencesOf(events: AsyncIterable<{ sequence: number }>): Promise<number[]> {
  const found: number[] = [];
  for await (const { sequence } of events) found.push(sequence);
  return found;
}

/** Never resolves, but ends when the call is canceled. */
export function untilCancelled({ signal }: CallContext): Promise<void> {
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve()));
}
