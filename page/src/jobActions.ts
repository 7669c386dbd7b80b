import type { Job } from '@relora/sdk/contract';
import { call, type Json } from './api.js';
import { el } from './element.js';
import { field, formDialog, uuid } from './formDialog.js';
import { idOf } from './format.js';
import { isTerminal, titleOf } from './jobParts.js';
import { attempt, confirmed, notice } from './notice.js';
import { open } from './route.js';
import { mayChange } from './session.js';
import { updateDialog } from './updateDialog.js';

/** Buttons for what can be done with a job in its state. `changed` is called with the job afterwards. */
export function jobActions(job: Json<Job>, changed: (job: Json<Job>) => void): HTMLElement[] {
  if (!mayChange()) return [];
  const { name, etag, state } = job;
  const steer =
    (verb: 'pauseJob' | 'resumeJob' | 'cancelJob' | 'undeleteJob', said: string) =>
    async (): Promise<void> => {
      // The etag of the displayed job: nobody stops a job that someone else has just changed.
      const request =
        verb === 'undeleteJob'
          ? { name }
          : { name, etag: verb === 'resumeJob' ? etag : '', requestId: uuid() };
      const { job: result } = await call('TrainingService', verb, request);
      if (result !== undefined) changed(result);
      notice(said);
    };
  if (job.deleteTime !== undefined) return [button('Undelete', steer('undeleteJob', 'It is back'))];
  const buttons: HTMLElement[] = [];
  if (state === 'JOB_STATE_RUNNING' || state === 'JOB_STATE_QUEUED' || state === 'JOB_STATE_STARTING')
    buttons.push(button('Pause', steer('pauseJob', 'Paused, with a checkpoint')));
  if (state === 'JOB_STATE_PAUSED') buttons.push(button('Resume', steer('resumeJob', 'Queued'), 'primary'));
  if (!isTerminal(job))
    buttons.push(
      button('Change', async () => await updateDialog(job, changed)),
      button(
        'Cancel',
        async () => {
          if (
            await confirmed(
              `Cancel ${titleOf(job)}? It ends for good; its checkpoints stay.`,
              'Cancel the job',
            )
          )
            await steer('cancelJob', 'Cancelled')();
        },
        'danger',
      ),
    );
  else
    buttons.push(
      button('Fork', async () => await forkDialog(job), 'primary'),
      button(
        'Delete',
        async () => {
          if (
            !(await confirmed(
              `Delete ${titleOf(job)} with its checkpoints and artifacts? It can be undeleted for some time.`,
              'Delete the job',
            ))
          )
            return;
          const { job: result } = await call('TrainingService', 'deleteJob', { name });
          if (result !== undefined) changed(result);
          notice('Deleted');
        },
        'danger',
      ),
    );
  return buttons;
}

function button(text: string, action: () => Promise<void>, kind = ''): HTMLElement {
  const element = el('button', { class: kind }, text);
  element.addEventListener('click', () => {
    element.disabled = true;
    void attempt(action).finally(() => (element.disabled = false));
  });
  return element;
}

/** Asks what the fork changes, and creates it. */
async function forkDialog(job: Json<Job>): Promise<void> {
  const [title, titleField] = field('Title', { value: job.displayName, maxlength: 63 });
  const [checkpoint, checkpointField] = field('Checkpoint at step', {
    type: 'number',
    min: 0,
    placeholder: 'newest',
  });
  const [steps, stepsField] = field('Steps of the main phase', {
    type: 'number',
    min: 1,
    placeholder: String(job.spec?.stepCount ?? ''),
  });
  const [rate, rateField] = field('Peak learning rate', {
    inputmode: 'decimal',
    placeholder: String(job.spec?.learningRate?.peak ?? ''),
  });
  const other = el('textarea', {
    rows: 4,
    spellcheck: 'false',
    placeholder: '{ "evaluation": { "everyStepCount": 100 } }',
  });
  const requestId = uuid();
  await formDialog({
    id: 'fork-title',
    title: `Fork ${titleOf(job)}`,
    note: 'A new job that begins at a checkpoint of this one. What is left empty stays as it is.',
    fields: [title, checkpoint, steps, rate, el('label', {}, 'Other settings, as JSON of a JobSpec', other)],
    verb: 'Fork',
    send: async () => {
      const spec = other.value.trim() === '' ? {} : (JSON.parse(other.value) as Record<string, unknown>);
      if (stepsField.value !== '') spec.stepCount = Number(stepsField.value);
      if (rateField.value !== '')
        spec.learningRate = { ...(spec.learningRate as object), peak: Number(rateField.value) };
      const { job: fork, warnings } = await call('TrainingService', 'forkJob', {
        name: job.name,
        displayName: titleField.value,
        requestId,
        spec: spec as never,
        ...(checkpointField.value === '' ? {} : { checkpointStep: Number(checkpointField.value) }),
      });
      for (const { message } of warnings) notice(message, 'bad');
      if (fork !== undefined) open(`/jobs/${idOf(fork.name)}`);
    },
  });
}
