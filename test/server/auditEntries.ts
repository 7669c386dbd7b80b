import type { AuditEntry } from '@relora/sdk/contract';

/** The parts of an entry that are the same on every machine. */
export function readdressed({ method, resource, requestId, result }: AuditEntry) {
  return { method, resource, requestId, result };
}
