import { tenantOf } from '../store/tenantIds.js';

/**
 * The series of one tenant's jobs in a text in Prometheus's format, selected by the label `job_id`. Series about the server as a whole and
 * of other tenants are left out, as are metrics without remaining series.
 */
export function metricsOfTenant(text: string, tenant: string): string {
  const kept: string[] = [];
  let head: string[] = [];
  for (const line of text.split('\n')) {
    if (line.startsWith('#')) {
      // A metric begins with its HELP line.
      head = line.startsWith('# HELP') ? [line] : [...head, line];
      continue;
    }
    const jobId = /^[a-z_]+\{(?:[^"]*"[^"]*",)*?job_id="([^"\\]+)"/.exec(line)?.[1];
    if (jobId === undefined || tenantOf(jobId) !== tenant) continue;
    for (const said of head.splice(0)) kept.push(said);
    kept.push(line);
  }
  return kept.length === 0 ? '' : `${kept.join('\n')}\n`;
}
