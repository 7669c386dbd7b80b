import type { Job, JobPlan } from '@relora/sdk/contract';
import type { Json } from './api.js';
import { el } from './element.js';
import { duration, figure, whole } from './format.js';
import { isTerminal } from './jobParts.js';

interface Coming {
  what: string;
  step: number;
  note?: string;
}

/** What a job will do next, soonest first. */
export function nextList(job: Json<Job>, plan: Json<JobPlan> | undefined): HTMLElement {
  const step = Number(job.progress?.step ?? 0);
  const steps = Number(job.progress?.stepCount ?? 0);
  const left = job.progress?.remainingSeconds;
  const secondsPerStep = left === undefined || steps <= step ? undefined : Number(left) / (steps - step);
  const items = comingOf(job, plan, step, steps).map(({ what, step: at, note }) =>
    el(
      'li',
      {},
      el('span', {}, what, note === undefined ? null : el('small', { class: 'muted' }, ` ${note}`)),
      el(
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
        ? `${job.failure.reason}: ${job.failure.message}`
        : `Nothing: it has ended. ${job.stateReason}`;
  }
}

function comingOf(
  { spec }: Json<Job>,
  plan: Json<JobPlan> | undefined,
  step: number,
  steps: number,
): Coming[] {
  const coming: Coming[] = [];
  const every = (what: string, cadence: string | number | undefined): void => {
    const count = Number(cadence ?? 0);
    const at = count > 0 ? (Math.floor(step / count) + 1) * count : 0;
    if (at > 0 && at <= steps) coming.push({ what, step: at, note: `every ${whole(count)}` });
  };
  every('Evaluation', spec?.evaluation?.everyStepCount);
  every('Checkpoint', spec?.checkpoint?.everyStepCount);
  if (spec?.sample?.prompt) every('Sample', spec.sample.everyStepCount);
  const restart = plan?.restartSteps.map(Number).find((at) => at >= step);
  if (restart !== undefined) {
    const number = plan!.restartSteps.map(Number).indexOf(restart) + 1;
    coming.push({ what: 'Restart', step: restart, note: `${number} of ${plan!.restartCount}` });
  }
  const warmStart = Number(spec?.warmStart?.stepCount ?? 0);
  if (step < warmStart) coming.push({ what: 'Adapters begin', step: warmStart });
  if (step < steps)
    coming.push({
      what: 'Last step, then export',
      step: steps,
      note: figure(spec?.learningRate?.minRatio) === '–' ? undefined : '',
    });
  return coming.sort((a, b) => a.step - b.step);
}
