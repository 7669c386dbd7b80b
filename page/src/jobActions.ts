import type { Job } from '@relora/sdk/contract';
import { call, type Json } from './api.js';
import { el } from './element.js';
import { idOf } from './format.js';
import { isTerminal, titleOf } from './jobParts.js';
import { attempt, confirmed, notice } from './notice.js';
import { open } from './route.js';
import { mayChange } from './session.js';

/** Buttons for what can be done to a job as it stands. `changed` is called with what became of it. */
export function jobActions(job: Json<Job>, changed: (job: Json<Job>) => void): HTMLElement[] {
  if (!mayChange()) return [];
  const { name, etag, state } = job;
  const steer =
    (verb: 'pauseJob' | 'resumeJob' | 'cancelJob' | 'undeleteJob', said: string) =>
    async (): Promise<void> => {
      // The etag of what is shown: nobody stops a job that someone else has just changed.
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

/** Asks what the fork changes, and makes it. */
async function forkDialog(job: Json<Job>): Promise<void> {
  const input = (
    label: string,
    attributes: Record<string, string | number>,
  ): [HTMLElement, HTMLInputElement] => {
    const field = el('input', attributes);
    return [el('label', {}, label, field), field];
  };
  const [title, titleField] = input('Title', { value: job.displayName, maxlength: 63 });
  const [checkpoint, checkpointField] = input('Checkpoint at step', {
    type: 'number',
    min: 0,
    placeholder: 'newest',
  });
  const [steps, stepsField] = input('Steps of the main phase', {
    type: 'number',
    min: 1,
    placeholder: String(job.spec?.stepCount ?? ''),
  });
  const [rate, rateField] = input('Peak learning rate', {
    inputmode: 'decimal',
    placeholder: String(job.spec?.learningRate?.peak ?? ''),
  });
  const other = el('textarea', {
    rows: 4,
    spellcheck: 'false',
    placeholder: '{ "evaluation": { "everyStepCount": 100 } }',
  });
  const problem = el('p', { class: 'problem', role: 'alert', hidden: true });
  const go = el('button', { class: 'primary', value: 'go' }, 'Fork');
  const dialog = el(
    'dialog',
    { class: 'ask', 'aria-labelledby': 'fork-title' },
    el(
      'form',
      { method: 'dialog' },
      el('h2', { id: 'fork-title' }, `Fork ${titleOf(job)}`),
      el(
        'p',
        { class: 'muted' },
        'A new job that begins at a checkpoint of this one. What is left empty stays as it is.',
      ),
      title,
      checkpoint,
      steps,
      rate,
      el('label', {}, 'Other settings, as JSON of a JobSpec', other),
      problem,
      el('div', { class: 'buttons' }, el('button', { value: 'no', formnovalidate: true }, 'Close'), go),
    ),
  );
  const requestId = uuid();
  dialog.querySelector('form')!.addEventListener('submit', (event) => {
    if ((event as SubmitEvent).submitter !== go) return;
    event.preventDefault();
    const send = async (): Promise<void> => {
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
      dialog.close('done');
      if (fork !== undefined) open(`/jobs/${idOf(fork.name)}`);
    };
    send().catch((error: unknown) => {
      problem.hidden = false;
      problem.textContent = error instanceof Error ? error.message : String(error);
    });
  });
  document.body.append(dialog);
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener('close', resolve, { once: true }));
  dialog.remove();
}

/** crypto.randomUUID is only there where the page came over TLS or from this machine. */
function uuid(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
