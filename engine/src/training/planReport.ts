import { performance } from 'node:perf_hooks';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { graphCosts, separateGraphs, type LayerGraph, type LayerGraphs } from '../plan/adapterGraphs.js';
import { layerMethod } from '../plan/layerMethod.js';
import { linearShapes } from '../plan/parameters.js';
import type { StepBatch } from './gradients.js';
import type { TrainingEvent } from '../plan/trainingEvent.js';
import type { TrainingRun } from './trainingRun.js';

export type PlanReport = Omit<TrainingEvent & { kind: 'plan' }, 'kind' | 'step'>;

/** Most tokens in a timed pass: more would not change the result. */
const timedTokensMax = 1024;
/** A pass that takes longer is not timed, and no round starts after this many seconds. */
const passSecondsMax = 20;
const roundCount = 2;
/** Chosen graphs contradict the plan if they are slower than separate paths by this factor and this many seconds; less may be noise. */
const slowdownMax = 1.1;
const slowdownSecondsMin = 0.05;

/**
 * Reports how the adapter phase is computed, and whether measurements agree with the plan. Chosen graphs other than separate paths are
 * timed against separate paths on the current model, without side effects. The choice does not change, since bits depend on it. Null if the
 * signal is aborted.
 */
export async function reportPlan(run: TrainingRun, signal: AbortSignal): Promise<PlanReport | null> {
  const { spec, graphs } = run;
  const { precision, basePrecision, instructionSet } = run.device.description;
  const { targetModules } = spec.adapter!;
  const isSeparate = targetModules.every((module) => graphs[module] === 'separate');
  const timed = isSeparate ? { planned: null, separate: null } : await timeGraphs(run, signal);
  if (timed === null) return null;
  return {
    graphs: targetModules.map((module) => ({ module, graph: graphs[module] })),
    plannedOperations: operationsOf(run, graphs),
    separateOperations: operationsOf(run, separateGraphs),
    plannedSeconds: timed.planned,
    separateSeconds: timed.separate,
    recomputation: spec.recomputation === 'blocks' ? 'blocks' : 'none',
    precision,
    basePrecision,
    instructionSet: instructionSet ?? '',
  };
}

/** A warning if the measurement contradicts the plan, else null. */
export function slowerThanPlanned({
  plannedSeconds,
  separateSeconds,
}: Pick<PlanReport, 'plannedSeconds' | 'separateSeconds'>): { reason: string; message: string } | null {
  if (plannedSeconds === null || separateSeconds === null) return null;
  const limit = Math.max(slowdownMax * separateSeconds, separateSeconds + slowdownSecondsMin);
  if (plannedSeconds <= limit) return null;
  const [planned, separate] = [plannedSeconds, separateSeconds].map((seconds) => seconds.toPrecision(3));
  return {
    reason: 'GRAPHS_SLOWER_THAN_PLANNED',
    message: `A step takes about ${planned} s with the graphs that were chosen and ${separate} s with separate ones: the run keeps its choice, on which its bits depend; a new job can ask for adapter.graph SEPARATE`,
  };
}

function operationsOf({ spec, device }: TrainingRun, graphs: LayerGraphs): number {
  const { targetModules } = spec.adapter!;
  const shapes = linearShapes(spec.model);
  return targetModules.reduce((sum, module) => {
    const costs: Record<LayerGraph, number> = graphCosts(
      shapes[module],
      layerMethod(spec.adapter!, module),
      spec.batch,
      device.description,
    );
    return sum + spec.model.numHiddenLayers * costs[graphs[module]];
  }, 0);
}

interface TimedGraphs {
  /** Seconds of a step up to its gradients; null if a pass takes too long to be timed. */
  planned: number | null;
  separate: number | null;
}

/** Times both ways alternately and takes the best of each. A merged weight is computed once a step, however many passes the step has. */
async function timeGraphs(run: TrainingRun, signal: AbortSignal): Promise<TimedGraphs | null> {
  const { model, graphs, device } = run;
  const { sequenceCount, sequenceLength, microBatchSequenceCount } = run.spec.batch;
  const count = Math.min(microBatchSequenceCount, Math.max(1, Math.floor(timedTokensMax / sequenceLength)));
  const batch = await run.batches.read(0, count);
  const one = await run.batches.read(0, 1);
  const passes = sequenceCount / count;
  const best = { making: Infinity, planned: Infinity, separate: Infinity };
  const beganAt = performance.now();
  try {
    for (let round = 0; round < roundCount && secondsSince(beganAt) < passSecondsMax; round++) {
      for (const way of ['separate', 'planned'] as const) {
        await nextTurn();
        if (signal.aborted) return null;
        // State buffers differ in size between the two; the other way's buffers would otherwise stay allocated for good.
        device.trim();
        model.useGraphs(way === 'planned' ? graphs : separateGraphs);
        const making = secondsOf(() => model.prepareGraphs());
        if (way === 'planned') best.making = Math.min(best.making, making);
        if (round === 0 && count * secondsOf(() => pass(run, one, 1)) > passSecondsMax)
          return { planned: null, separate: null };
        pass(run, batch, count); // warms up: the timed pass then finds its buffers and has no page faults
        best[way] = Math.min(
          best[way],
          secondsOf(() => pass(run, batch, count)),
        );
      }
    }
  } finally {
    device.trim();
    model.useGraphs(graphs);
  }
  return { planned: best.making + passes * best.planned, separate: passes * best.separate };
}

/** Computes loss and gradients and discards them. Without dropout, whose masks cost extra time. */
function pass(run: TrainingRun, { inputs, targets }: StepBatch, sequenceCount: number): void {
  const { model, spec, gradients, result } = run;
  model.differentiate(
    { inputs, targets, batch: sequenceCount, time: spec.batch.sequenceLength },
    gradients.sumFor(model),
    result,
    { recompute: spec.recomputation === 'blocks', headPrecision: spec.headPrecision },
  );
}

function secondsOf(work: () => void): number {
  const beganAt = performance.now();
  work();
  return secondsSince(beganAt);
}

function secondsSince(beganAt: number): number {
  return (performance.now() - beganAt) / 1000;
}
