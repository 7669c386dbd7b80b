import { requireSameBits } from './sameBits.js';
import type { TrainingRun } from './trainingRun.js';

/**
 * Whether members take the next step by themselves (local SGD; DiLoCo, arXiv 2311.08105, with the mean as its outer step): the restart at
 * the end of a cycle merges what each learned, and all then take the mean of their weights.
 */
export function trainsApart({ spec, collective, model }: TrainingRun): boolean {
  return spec.synchronization === 'everyCycle' && collective.size > 1 && model.adapterSettings !== null;
}

/** Whether members meet before this step. The last cycle ends with the run, and is merged as well: factors have no mean. */
export function meetsBefore(step: number, { schedule, progress, isApart }: TrainingRun): boolean {
  return isApart && (step >= schedule.stepCount || progress.restartCount < schedule.restartNumberAt(step));
}

/** After a restart, whose adapters are alike in all. The moments that stay are of weights that all members have: their mean is taken too. */
export async function takeCycleMean(run: TrainingRun): Promise<void> {
  const { model, optimizer, collective } = run;
  await model.changeBase((weight) => collective.mean([weight]));
  for (const parameter of model.parameters.values()) {
    if (parameter.role !== 'shared') continue;
    await collective.mean([parameter.buffer]);
    parameter.version++;
  }
  await collective.mean(optimizer.plainMoments('shared'));
  await collective.mean(optimizer.plainMoments('scale'));
  run.isApart = false;
  await requireSameBits(run);
}

/** A step that one member cannot take, because its gradient is not finite, is taken by none, so that all count alike. */
export async function refuseTogether({ device, result, collective }: TrainingRun): Promise<void> {
  const { squaredNorm, ...losses } = await device.readResult(result);
  if (await collective.any(!Number.isFinite(squaredNorm)))
    device.writeLosses(result, { ...losses, loss: NaN });
}
