import { readFileSync } from 'node:fs';
import { JobEvent as EventProto } from '@relora/sdk/contract';
import { jsonWriter } from '../grpc/jsonMethods.js';
import type { EventJson } from '../webhooks/eventMessage.js';
import { toEvent } from './toProto.js';

const contractFile = new URL('../../src/generated/relora.binpb', import.meta.url);

/** Writes events as the page and other JSON clients read them. */
export function eventJson(): EventJson {
  const write = jsonWriter(readFileSync(contractFile), 'relora.v1.JobEvent');
  return (jobId, event) => write(EventProto.encode(EventProto.fromPartial(toEvent(jobId, event))).finish());
}
