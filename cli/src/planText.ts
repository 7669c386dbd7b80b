import type { JobEvent } from '@relora/sdk';
import { figure, quantity, word } from './format.js';

type Plan = (JobEvent & { kind: 'plan' })['plan'];

/** One line about how the adapter phase is computed. */
export function planText({ step, graphs, ...plan }: Plan): string {
  const { plannedOperations, separateOperations, plannedSeconds, separateSeconds } = plan;
  const timed =
    plannedSeconds === undefined || separateSeconds === undefined
      ? 'not timed'
      : `measured ${figure(plannedSeconds)} s per step, ${figure(separateSeconds)} s with separate graphs`;
  const how = [
    `base ${word(plan.basePrecision, 'PRECISION_')}`,
    `recomputation ${word(plan.recomputation, 'RECOMPUTATION_')}`,
    plan.instructionSet,
  ];
  return `plan from step ${step}: ${graphsText(graphs)}; ${quantity(plannedOperations)}FLOP a step in adapted layers, ${quantity(separateOperations)}FLOP with separate graphs; ${timed}; ${how.filter(Boolean).join(', ')}`;
}

/** `merged`, or `merged but down_proj separate`: exceptions from the graph that most layers have. */
function graphsText(graphs: Plan['graphs']): string {
  const byGraph = new Map<string, string[]>();
  for (const { module, graph } of graphs) {
    const name = word(graph, 'ADAPTER_GRAPH_');
    byGraph.set(name, [...(byGraph.get(name) ?? []), word(module, 'TARGET_MODULE_').replaceAll('-', '_')]);
  }
  const [most, ...others] = [...byGraph].sort((a, b) => b[1].length - a[1].length);
  if (most === undefined) return 'no adapters';
  const rest = others.map(([graph, modules]) => `${modules.join(', ')} ${graph}`);
  return `graph ${[most[0], ...rest].join(' but ')}`;
}
