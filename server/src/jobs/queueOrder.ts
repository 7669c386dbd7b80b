import {
  sql,
  type Expression,
  type ExpressionBuilder,
  type Kysely,
  type SqlBool,
  type Transaction,
} from 'kysely';
import type { Schema } from '../store/schema.js';

/**
 * How many jobs run for the tenant and owner of a job. Within a priority the owner with the fewest is next, so that nobody who queues a
 * hundred jobs makes others wait for all of them.
 */
export function runningOfOwner(eb: ExpressionBuilder<Schema, 'jobs'>): Expression<number> {
  return eb
    .selectFrom('jobs as other')
    .select(({ fn }) => fn.countAll<number>().as('count'))
    .where('other.state', 'in', ['starting', 'running'])
    .whereRef('other.tenant', '=', 'jobs.tenant')
    .whereRef('other.owner', '=', 'jobs.owner')
    .$asScalar();
}

/** Owners and tenants whose jobs wait even if places are free. */
export interface ClaimLimits {
  /** 0 for no limit. */
  ownerRunningMax: number;
  closedTenants: readonly string[];
}

/** The condition that a job's owner and tenant may run one more. */
export function withinLimits({ ownerRunningMax, closedTenants }: ClaimLimits) {
  return (eb: ExpressionBuilder<Schema, 'jobs'>): Expression<SqlBool> =>
    eb.and([
      ownerRunningMax > 0 ? eb(runningOfOwner(eb), '<', ownerRunningMax) : eb.lit(true),
      closedTenants.length > 0 ? eb('jobs.tenant', 'not in', closedTenants) : eb.lit(true),
    ]);
}

interface QueuedRow {
  id: string;
  priority: number;
  tenant: string;
  owner: string;
}

/** Positions in the queue, from 1, in the order in which jobs would be taken if nothing else changed. */
export async function queuePositions(db: Kysely<Schema> | Transaction<Schema>): Promise<Map<string, number>> {
  const queued = await db
    .selectFrom('jobs')
    .select(['id', 'priority', 'tenant', 'owner'])
    .where('state', '=', 'queued')
    .where('delete_time_ms', 'is', null)
    .orderBy('priority', 'desc')
    .orderBy('create_time_ms')
    .orderBy('id')
    .execute();
  const running = await db
    .selectFrom('jobs')
    .select(['tenant', 'owner', sql<number>`count(*)`.as('count')])
    .where('state', 'in', ['starting', 'running'])
    .groupBy(['tenant', 'owner'])
    .execute();
  const counts = new Map(running.map((row) => [ownerOf(row), Number(row.count)]));
  return new Map(fairOrder(queued, counts).map((id, index) => [id, index + 1]));
}

/** Alternates between owners as claims do. Rows come highest priority first, then oldest first. */
export function fairOrder(queued: readonly QueuedRow[], running: ReadonlyMap<string, number>): string[] {
  const counts = new Map(running);
  const order: string[] = [];
  for (let first = 0; first < queued.length;) {
    let end = first;
    const waiting = new Map<string, QueuedRow[]>();
    for (; end < queued.length && queued[end]!.priority === queued[first]!.priority; end++) {
      const row = queued[end]!;
      const rows = waiting.get(ownerOf(row));
      if (rows === undefined) waiting.set(ownerOf(row), [row]);
      else rows.push(row);
    }
    const places = new Map(queued.slice(first, end).map(({ id }, index) => [id, index]));
    while (waiting.size > 0) {
      let next: string | undefined;
      for (const [owner, rows] of waiting)
        if (next === undefined || isBefore(owner, rows[0]!, next, waiting.get(next)![0]!)) next = owner;
      const rows = waiting.get(next!)!;
      order.push(rows.shift()!.id);
      counts.set(next!, (counts.get(next!) ?? 0) + 1);
      if (rows.length === 0) waiting.delete(next!);
    }
    function isBefore(owner: string, row: QueuedRow, other: string, otherRow: QueuedRow): boolean {
      const difference = (counts.get(owner) ?? 0) - (counts.get(other) ?? 0);
      return difference === 0 ? places.get(row.id)! < places.get(otherRow.id)! : difference < 0;
    }
    first = end;
  }
  return order;
}

function ownerOf({ tenant, owner }: Pick<QueuedRow, 'tenant' | 'owner'>): string {
  return `${tenant}/${owner}`;
}
