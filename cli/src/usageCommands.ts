import type { Command } from 'commander';
import { UsageDimension, type GetQuotaResponse, type QuotaUse, type UsageRow } from '@relora/sdk';
import { UsageError } from './exitCodes.js';
import { bytes, figure, quantity, table, timeTaken } from './format.js';
import type { Run } from './session.js';

const dimensions = {
  job: UsageDimension.JOB,
  tenant: UsageDimension.TENANT,
  month: UsageDimension.MONTH,
} as const;
type DimensionName = keyof typeof dimensions;

interface UsageFlags {
  by: string;
  label?: string;
  from?: string;
  to?: string;
  allTenants?: boolean;
  csv?: boolean;
}

/** Commands about what jobs used and the tenant's quotas. */
export function addUsageCommands(program: Command, run: Run): void {
  program
    .command('usage')
    .description('show what jobs used, also deleted ones: steps, tokens, device hours')
    .option(
      '--by <what>',
      'group by job, tenant or month, separated by commas, or `all` for one sum',
      'month',
    )
    .option('--label <key>', 'also group by the values of this label')
    .option('--from <month>', 'the first month, for example 2026-11')
    .option('--to <month>', 'the last month')
    .option('--all-tenants', 'include all tenants; for operators')
    .option('--csv', 'print CSV, for spreadsheets')
    .action((flags: UsageFlags) =>
      run(async ({ client, output, signal }) => {
        const by = parseBy(flags.by);
        const rows: UsageRow[] = [];
        const asked = {
          groupBy: by.map((name) => dimensions[name]),
          label: flags.label ?? '',
          firstMonth: flags.from ?? '',
          lastMonth: flags.to ?? '',
          allTenants: flags.allTenants ?? false,
        };
        for await (const row of client.usage({ ...asked, pageSize: 500, signal })) rows.push(row);
        const columns = columnsOf(by, flags.label);
        if (flags.csv) for (const line of csvOf(columns, rows)) output.text(line);
        else
          output.result({ rows }, () =>
            rows.length === 0
              ? ['No use was recorded.']
              : table([
                  columns.map(({ title }) => title),
                  ...rows.map((row) => columns.map(({ text }) => text(row))),
                ]),
          );
      }),
    );

  program
    .command('quota')
    .description('show the quotas of the tenant, and how much of each is used')
    .action(() =>
      run(async ({ client, output, signal }) => {
        const found = await client.quota({ signal });
        output.result(found, () => quotaText(found));
      }),
    );
}

interface Column {
  title: string;
  /** For people. */
  text(row: UsageRow): string;
  /** For programs: with every digit. */
  value(row: UsageRow): string;
}

function columnsOf(by: readonly DimensionName[], label: string | undefined): Column[] {
  const same = (title: string, value: (row: UsageRow) => string): Column => ({ title, text: value, value });
  return [
    ...(by.includes('tenant') ? [same('TENANT', ({ tenant }) => tenant)] : []),
    ...(by.includes('month') ? [same('MONTH', ({ month }) => month)] : []),
    ...(by.includes('job') ? [same('JOB', ({ job }) => job)] : []),
    ...(label === undefined ? [] : [same(label.toUpperCase(), ({ labelValue }) => labelValue)]),
    same('ATTEMPTS', ({ attemptCount }) => String(attemptCount)),
    {
      title: 'STEP SECONDS',
      text: ({ stepSeconds }) => timeTaken(stepSeconds),
      value: ({ stepSeconds }) => String(stepSeconds),
    },
    { title: 'TOKENS', text: ({ tokens }) => quantity(tokens), value: ({ tokens }) => String(tokens) },
    {
      title: 'DEVICE HOURS',
      text: ({ deviceHours }) => figure(deviceHours),
      value: ({ deviceHours }) => String(deviceHours),
    },
  ];
}

function csvOf(columns: readonly Column[], rows: readonly UsageRow[]): string[] {
  return [
    columns.map(({ title }) => cell(title.toLowerCase().replaceAll(' ', '_'))).join(','),
    ...rows.map((row) => columns.map(({ value }) => cell(value(row))).join(',')),
  ];
}

/** Spreadsheets evaluate cells that look like formulas, and anybody may have written the labels. */
function cell(text: string): string {
  const harmless = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(harmless) ? `"${harmless.replaceAll('"', '""')}"` : harmless;
}

function parseBy(text: string): DimensionName[] {
  if (text === 'all') return [];
  return text.split(',').map((part) => {
    const name = part.trim();
    if (!Object.hasOwn(dimensions, name))
      throw new UsageError(`--by: expected job, tenant, month separated by commas, or all, got ${part}`);
    return name as DimensionName;
  });
}

function quotaText({ tenant, quotas }: GetQuotaResponse): string[] {
  return [
    `Tenant ${tenant}`,
    ...table([
      ['QUOTA', 'USED', 'MAX', 'COUNTS FOR'],
      ...quotas.map((quota) => [
        quota.name,
        amount(quota, quota.used),
        quota.max === undefined ? 'no limit' : amount(quota, quota.max),
        quota.windowDays === 0 ? '' : `${quota.windowDays} days`,
      ]),
    ]),
  ];
}

function amount({ name }: QuotaUse, value: number): string {
  return name === 'bytes' ? bytes(value) : name === 'device_hours' ? figure(value) : String(value);
}
