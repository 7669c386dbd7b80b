import { createHmac, randomBytes } from 'node:crypto';
import type { JobEventBody } from '../jobs/job.js';
import type { WebhookRow } from '../store/schema.js';

/** Kinds of events that can be sent. */
export const eventKinds = [
  'state',
  'step',
  'evaluation',
  'namedEvaluation',
  'restart',
  'checkpoint',
  'artifact',
  'sample',
  'warning',
  'plan',
  'update',
  'stop',
  'documents',
] as const satisfies readonly JobEventBody['kind'][];
export type EventKind = (typeof eventKinds)[number];

/** The name of the field in JobEvent, for example named_evaluation. */
export function fieldOf(kind: JobEventBody['kind']): string {
  return kind.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Kinds for a webhook that names none: steps and documents come by the hundred, so a receiver has to ask for them. */
export const defaultEventKinds: readonly EventKind[] = eventKinds.filter(
  (kind) => kind !== 'step' && kind !== 'documents',
);

export interface Webhook {
  id: string;
  tenant: string;
  name: string;
  owner: string;
  url: string;
  secret: string;
  eventKinds: readonly EventKind[];
  labels: Record<string, string>;
  createTimeMs: number;
  lastSuccessTimeMs: number | null;
  lastFailure: string;
}

export function toWebhook(row: WebhookRow): Webhook {
  return {
    id: row.id,
    tenant: row.tenant,
    name: row.name,
    owner: row.owner,
    url: row.url,
    secret: row.secret,
    eventKinds: JSON.parse(row.event_kinds) as EventKind[],
    labels: JSON.parse(row.labels) as Record<string, string>,
    createTimeMs: row.create_time_ms,
    lastSuccessTimeMs: row.last_success_time_ms,
    lastFailure: row.last_failure,
  };
}

const secretPrefix = 'whsec_';

export function newSecret(): string {
  return secretPrefix + randomBytes(32).toString('base64');
}

/** The bytes of a key in the format of Standard Webhooks; undefined if it is invalid. */
export function readSecret(text: string): Buffer | undefined {
  if (!text.startsWith(secretPrefix)) return undefined;
  const base64 = text.slice(secretPrefix.length);
  const bytes = Buffer.from(base64, 'base64');
  const isWhole = bytes.toString('base64').replace(/=+$/, '') === base64.replace(/=+$/, '');
  return isWhole && bytes.length >= 24 && bytes.length <= 64 ? bytes : undefined;
}

/** Headers that prove to a receiver who sent a message and that it is not a replay (Standard Webhooks 1.0). */
export function signedHeaders(
  secret: string,
  { id, body }: { id: string; body: string },
  nowMs: number,
): Record<string, string> {
  const seconds = Math.floor(nowMs / 1000);
  const key = readSecret(secret)!;
  const signature = createHmac('sha256', key).update(`${id}.${seconds}.${body}`).digest('base64');
  return {
    'webhook-id': id,
    'webhook-timestamp': String(seconds),
    'webhook-signature': `v1,${signature}`,
  };
}
