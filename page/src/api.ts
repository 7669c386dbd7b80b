import type {
  ArtifactServiceDefinition,
  DatasetServiceDefinition,
  DeepPartial,
  MessageFns,
  ServerServiceDefinition,
  TrainingServiceDefinition,
} from '@relora/sdk/contract';
import type { JsonNumber } from './format.js';

/** The JSON form of a message. */
export type Json<T> = T extends Date | Uint8Array
  ? string
  : T extends string | boolean | undefined
    ? T
    : T extends number
      ? JsonNumber
      : T extends (infer Entry)[]
        ? Json<Entry>[]
        : { [Name in keyof T]: Json<T[Name]> };

interface Services {
  TrainingService: (typeof TrainingServiceDefinition)['methods'];
  ArtifactService: (typeof ArtifactServiceDefinition)['methods'];
  DatasetService: (typeof DatasetServiceDefinition)['methods'];
  ServerService: (typeof ServerServiceDefinition)['methods'];
}

type MessageOf<T> = T extends MessageFns<infer Message> ? Message : never;
type RequestOf<M> = M extends { requestType: infer Type } ? DeepPartial<Json<MessageOf<Type>>> : never;
type ResponseOf<M> = M extends { responseType: infer Type } ? Json<MessageOf<Type>> : never;

/** An error from the server: its reason is listed in docs/errors.md. */
export class CallFailed extends Error {
  override name = 'CallFailed';
  constructor(
    readonly status: number,
    readonly reason: string,
    message: string,
  ) {
    super(message);
  }
}

/** Calls a method of the contract. */
export async function call<S extends keyof Services, M extends keyof Services[S] & string>(
  service: S,
  method: M,
  request: RequestOf<Services[S][M]>,
  signal?: AbortSignal,
): Promise<ResponseOf<Services[S][M]>> {
  const name = method[0]!.toUpperCase() + method.slice(1);
  const response = await fetch(`/api/relora.v1.${service}/${name}`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(request),
    signal: signal ?? null,
  });
  if (!response.ok) throw await failureOf(response);
  return (await response.json()) as ResponseOf<Services[S][M]>;
}

export async function failureOf(response: Response): Promise<CallFailed> {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text) as { error: { message: string; details: { reason?: string }[] } };
    const reason = error.details.find((detail) => detail.reason !== undefined)?.reason ?? '';
    return new CallFailed(response.status, reason, error.message);
  } catch {
    return new CallFailed(response.status, '', text.trim() || `HTTP ${response.status}`);
  }
}

export function messageOf(error: unknown): string {
  if (error instanceof CallFailed) return error.message;
  return error instanceof TypeError ? 'The server does not answer' : String(error);
}
