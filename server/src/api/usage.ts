import type { DeepPartial, GetUsageRequest, GetUsageResponse } from '@relora/sdk/contract';
import { requireRole, type Principal } from '../access/principal.js';
import { nameOf } from '../store/tenantIds.js';
import { enums } from './enums.js';
import { FieldChecks } from './fieldChecks.js';
import { parsePageSize } from './pageToken.js';
import type { ApiParts } from './parts.js';
import { toDate } from './toProto.js';

/** What jobs used, summed as the request asks for, page by page. */
export async function getUsage(
  { usage, pageTokens }: Pick<ApiParts, 'usage' | 'pageTokens'>,
  request: GetUsageRequest,
  caller: Principal,
): Promise<DeepPartial<GetUsageResponse>> {
  if (request.allTenants) requireRole(caller, 'operator', 'the usage of all tenants');
  const checks = new FieldChecks();
  const rowsMax = parsePageSize(checks, request.pageSize);
  const by = request.groupBy.map((dimension, index) => {
    const known = enums.UsageDimension.from[dimension];
    if (known === undefined) checks.add(`group_by[${index}]`, 'JOB, TENANT or MONTH', dimension);
    return known ?? 'job';
  });
  const label = checks.text('label', request.label, 63);
  const firstMonth = monthOf(checks, 'first_month', request.firstMonth);
  const lastMonth = monthOf(checks, 'last_month', request.lastMonth);
  checks.throwIfWrong();

  const question = {
    tenant: request.allTenants ? null : caller.tenant,
    by,
    label: label === '' ? null : label,
    firstMonth,
    lastMonth,
  };
  const same = ['usage', question];
  const skip = pageTokens.read<{ skip: number }>(same, request.pageToken)?.skip ?? 0;
  const rows = await usage.list(question, skip, rowsMax + 1);
  return {
    rows: rows.slice(0, rowsMax).map((row) => ({
      ...row,
      tenant: row.tenant ?? '',
      job: row.jobId === null ? '' : `jobs/${nameOf(row.jobId)}`,
      jobCreateTime: toDate(row.jobCreateTimeMs),
      month: row.month ?? '',
      deviceHours: row.deviceMs / 3_600_000,
    })),
    nextPageToken: pageTokens.write(same, rows.length > rowsMax ? { skip: skip + rowsMax } : null),
  };
}

function monthOf(checks: FieldChecks, field: string, text: string): string | null {
  if (text === '') return null;
  if (!/^[0-9]{4}-(0[1-9]|1[0-2])$/.test(text)) checks.add(field, 'a month such as 2026-11', text);
  return text;
}
