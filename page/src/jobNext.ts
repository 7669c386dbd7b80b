import type { EvaluationSpec, Job, JobPlan, JobSpec } from '@relora/sdk/contract';
import type { Json } from './api.js';
import { el } from './element.js';
import { duration, whole } from './format.js';
import { isTerminal } from './jobParts.js';
import { updatedSpec } from './jobUpdates.js';

interface Coming {
  what: string;
  /** Absent if it depends only on time. */
  step?: number;
  note?: string;
}

type Cadence = Pick<Json<EvaluationSpec>, 'everyStepCount' | 'everySeconds'>;

/** What a job will do next, soonest first. */
export function nextList(job: Json<Job>, plan: Json<JobPlan> | undefined): HTMLElement {
  const step = Number(job.progress?.step ?? 0);
  const spec = updatedSpec(job);
  const hasNewLength = job.updates.some(
    (update) => update.stepCount !== undefined && update.step === undefined,
  );
  const steps = hasNewLength
    ? Number(spec?.warmStart?.stepCount ?? 0) + Number(spec?.stepCount)
    : Number(job.progress?.stepCount ?? 0);
  const left = job.progress?.remainingSeconds;
  const secondsPerStep = left === undefined || steps <= step ? undefined : Number(left) / (steps - step);
  const items = comingOf(spec, plan, step, steps).map(({ what, step: at, note }) =>
    el(
      'li',
      {},
      el('span', {}, what, note === undefined ? null : el('small', { class: 'muted' }, ` ${note}`)),
      at === undefined
        ? null
        : el(
            'span',
            { class: 'number muted' },
            `step ${whole(at)}${secondsPerStep === undefined ? '' : ` · in ${duration((at - step) * secondsPerStep)}`}`,
          ),
    ),
  );
  return el(
    'div',
    {},
    el('p', { class: 'muted' }, standing(job)),
    el('ol', { class: 'next' }, ...(isTerminal(job) ? [] : items)),
  );
}

function standing(job: Json<Job>): string {
  const { checkpointStep } = job.progress ?? {};
  const from = checkpointStep === undefined ? 'begins at step 0' : `resumes at step ${whole(checkpointStep)}`;
  switch (job.state) {
    case 'JOB_STATE_QUEUED':
      return `Waits for a slot, at place ${job.queuePosition}; it ${from}. ${job.stateReason}`;
    case 'JOB_STATE_PAUSED':
      return `Paused; when it is resumed, it ${from}. ${job.stateReason}`;
    case 'JOB_STATE_STARTING':
      return `The trainer starts; it ${from}.`;
    case 'JOB_STATE_RUNNING':
      return `A crash would cost the steps since ${checkpointStep === undefined ? 'the beginning' : `step ${whole(checkpointStep)}`}.`;
    default:
      return job.failure
        ? `Nothing: it has failed. ${job.failure.message} (${job.failure.reason}). ${checkpointStep === undefined ? 'It left no checkpoint.' : `A fork can begin at its checkpoint of step ${whole(checkpointStep)}.`}`
        : `Nothing: it has ended. ${job.stateReason}`;
  }
}

function comingOf(
  spec: Json<JobSpec> | undefined,
  plan: Json<JobPlan> | undefined,
  step: number,
  steps: number,
): Coming[] {
  const coming: Coming[] = [];
  const every = (what: string, cadence: Cadence | undefined): void => {
    const [count, seconds] = [Number(cadence?.everyStepCount ?? 0), Number(cadence?.everySeconds ?? 0)];
    const at = count > 0 ? (Math.floor(step / count) + 1) * count : Infinity;
    const bySteps = at <= steps ? [`every ${whole(count)} steps`] : [];
    const notes = [...bySteps, ...(seconds > 0 ? [`every ${duration(seconds)}`] : [])];
    if (notes.length === 0) return;
    coming.push({ what, step: bySteps.length > 0 ? at : undefined, note: notes.join(' and ') });
  };
  every('Evaluation', spec?.evaluation);
  every('Checkpoint', spec?.checkpoint);
  if (spec?.sample?.prompt) every('Sample', spec.sample);
  const restart = plan?.restartSteps.map(Number).find((at) => at >= step);
  if (restart !== undefined) {
    const number = plan!.restartSteps.map(Number).indexOf(restart) + 1;
    coming.push({ what: 'Restart', step: restart, note: `${number} of ${plan!.restartCount}` });
  }
  const warmStart = Number(spec?.warmStart?.stepCount ?? 0);
  if (step < warmStart) coming.push({ what: 'Adapters begin', step: warmStart });
  if (step < steps) coming.push({ what: 'Last step, then export', step: steps });
  return coming.sort((a, b) => (a.step ?? Infinity) - (b.step ?? Infinity));
}
