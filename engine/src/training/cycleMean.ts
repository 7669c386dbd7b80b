import { requireSameBits } from './sameBits.js';
import type { TrainingRun } from './trainingRun.js';

/**
 * Whether members take the next step independently (local SGD; DiLoCo, arXiv 2311.08105, with the mean as its outer step): the restart at
 * the end of a cycle merges what each member learned, and then all take the mean of their weights.
 */
export function trainsApart({ spec, collective, model }: TrainingRun): boolean {
  return spec.synchronization === 'everyCycle' && collective.size > 1 && model.adapterSettings !== null;
}

/** Whether members average before this step. The last cycle ends with the run and is merged too, since factors cannot be averaged. */
export function meetsBefore(step: number, { schedule, progress, isApart }: TrainingRun): boolean {
  return isApart && (step >= schedule.stepCount || progress.restartCount < schedule.restartNumberAt(step));
}

/**
 * Averages weights after a restart, when adapters are equal in all members. Moments that are kept belong to weights that all members share,
 * so they are averaged too.
 */
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

/** If one member cannot take a step, because its gradient is not finite, none takes it, so that all count the same steps. */
export async function refuseTogether({ device, result, collective }: TrainingRun): Promise<void> {
  const { squaredNorm, ...losses } = await device.readResult(result);
  if (await collective.any(!Number.isFinite(squaredNorm)))
    device.writeLosses(result, { ...losses, loss: NaN });
}
