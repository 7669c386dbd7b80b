import type { Command } from 'commander';
import type { AuditEntry } from '@relora/sdk';
import { table } from './format.js';
import type { Run } from './session.js';
import { wholeNumber } from './specOptions.js';

/** Shows who changed what; for operators. */
export function addAuditCommand(program: Command, run: Run): void {
  program
    .command('audit')
    .description(
      'show the audit log, newest first: who changed what, from where, with what result; for operators',
    )
    .option('--of <tenant>', 'only changes in this tenant')
    .option('--by <caller>', 'only changes by this caller')
    .option('--limit <count>', 'number of entries to show', wholeNumber, 50)
    .action((flags: { of?: string; by?: string; limit: number }) =>
      run(async ({ client, output, signal }) => {
        const entries: AuditEntry[] = [];
        const { of: tenant = '', by: caller = '', limit } = flags;
        for await (const entry of client.listAuditEntries({ tenant, caller, signal })) {
          entries.push(entry);
          if (entries.length >= limit) break;
        }
        const head = ['TIME', 'CALLER', 'TENANT', 'FROM', 'METHOD', 'RESOURCE', 'RESULT'];
        output.result({ entries }, () =>
          entries.length === 0 ? ['No entries.'] : table([head, ...entries.map(rowOf)]),
        );
      }),
    );
}

function rowOf({ time, caller, tenant, peer, method, resource, result }: AuditEntry): string[] {
  return [time?.toISOString() ?? '', caller, tenant, peer, method, resource, result];
}
