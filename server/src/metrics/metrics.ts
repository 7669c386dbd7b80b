import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import { metricTable } from './metricTable.js';

type Instruments = { counter: Counter<string>; gauge: Gauge<string>; histogram: Histogram<string> };
type Table = typeof metricTable;

/** The instruments of the table, and the registry that serves them. Passed as an argument; there is no global registry. */
export type Metrics = { readonly registry: Registry } & {
  readonly [Name in keyof Table]: Instruments[Table[Name]['type']];
};

/**
 * Creates every metric of the table, and the usual `process_*` and `nodejs_*` of Node programs. Metrics without labels begin with 0, so
 * that rates include the first event.
 */
export function createMetrics(): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const instruments = Object.entries(metricTable).map(([key, entry]) => {
    const { name, help } = entry;
    const options = { name, help, labelNames: [...entry.labels], registers: [registry] };
    if (entry.type === 'counter') return [key, new Counter(options)];
    if (entry.type === 'gauge') return [key, new Gauge(options)];
    return [key, new Histogram({ ...options, buckets: [...(entry.buckets ?? [])] })];
  });
  return { registry, ...Object.fromEntries(instruments) } as Metrics;
}
