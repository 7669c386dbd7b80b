import type { AuditEntry } from '@relora/sdk/contract';

/** What of an entry is the same on every machine. */
export function readdressed({ method, resource, requestId, result }: AuditEntry) {
  return { method, resource, requestId, result };
}
