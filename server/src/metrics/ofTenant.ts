import { tenantOf } from '../store/tenantIds.js';

/**
 * Of a text in Prometheus's format the series that are about the jobs of one tenant, by the label `job_id`. What is about the server as
 * a whole, and what others have, is left out, and so are metrics of which nothing stays.
 */
export function metricsOfTenant(text: string, tenant: string): string {
  const kept: string[] = [];
  let head: string[] = [];
  for (const line of text.split('\n')) {
    if (line.startsWith('#')) {
      // A metric begins with its help.
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
