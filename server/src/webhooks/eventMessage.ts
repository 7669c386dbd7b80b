import type { JsonValue } from '@bufbuild/protobuf';
import type { Job, JobEvent } from '../jobs/job.js';
import { nameOf } from '../store/tenantIds.js';
import { fieldOf } from './webhook.js';

/** An event in protobuf's JSON form, as every client gets it. */
export type EventJson = (jobId: string, event: JobEvent) => JsonValue;

/** The body of a message about an event. If it would be too long, the event is left out: WatchJob returns it by its number. */
export function eventMessage(job: Job, event: JobEvent, toJson: EventJson, bytesMax: number): string {
  const message = (content: object): string =>
    JSON.stringify({
      type: `job.${fieldOf(event.body.kind)}`,
      timestamp: new Date(event.timeMs).toISOString(),
      data: {
        job: `jobs/${nameOf(job.id)}`,
        displayName: job.displayName,
        labels: job.labels,
        sequence: event.sequence,
        ...content,
      },
    });
  const whole = message({ event: toJson(job.id, event) });
  return Buffer.byteLength(whole) <= bytesMax ? whole : message({ truncated: true });
}

/** The message of TestWebhook. */
export function testMessage(nowMs: number): string {
  const timestamp = new Date(nowMs).toISOString();
  return JSON.stringify({ type: 'relora.test', timestamp, data: {} });
}
