import type { Job } from '@relora/sdk/contract';
import { call, type Json } from './api.js';
import { el } from './element.js';
import { field, formDialog, uuid } from './formDialog.js';
import { titleOf } from './jobParts.js';
import { notice } from './notice.js';

/** Asks what to change in a job that has not ended, and changes it. */
export async function updateDialog(job: Json<Job>, changed: (job: Json<Job>) => void): Promise<void> {
  const { spec } = job;
  const whole = (label: string, value: unknown, min: number) =>
    field(label, { type: 'number', min, step: 1, placeholder: String(value ?? '') });
  const [rate, rateField] = field('Learning rate, times the schedule', {
    inputmode: 'decimal',
    placeholder: '1 is the schedule itself',
  });
  const [steps, stepsField] = whole('Steps of the main phase', spec?.stepCount, 1);
  const [priority, priorityField] = field('Priority', {
    type: 'number',
    step: 1,
    placeholder: String(spec?.priority ?? 0),
  });
  const cadences = (['evaluation', 'checkpoint', 'sample'] as const).map((part) => {
    const [label, input] = whole(`Steps between ${nouns[part]}`, spec?.[part]?.everyStepCount, 0);
    return { part, label, input };
  });
  const [labels, labelsField] = field('Labels to set, key=value with commas; key= removes one', {
    spellcheck: 'false',
    placeholder: Object.entries(job.labels)
      .map(([key, value]) => `${key}=${value}`)
      .join(', '),
  });
  const requestId = uuid();
  await formDialog({
    id: 'update-title',
    title: `Change ${titleOf(job)}`,
    note: 'It holds from the start of a step and is kept in the journal, so that resume and replay repeat it. What is left empty stays as it is.',
    fields: [
      rate,
      steps,
      el('div', { class: 'pair' }, ...cadences.map(({ label }) => label), priority),
      labels,
    ],
    verb: 'Change',
    send: async () => {
      const given = readLabels(labelsField.value);
      const changes: Record<string, unknown> = {};
      if (stepsField.value !== '') changes.stepCount = Number(stepsField.value);
      if (priorityField.value !== '') changes.priority = Number(priorityField.value);
      for (const { part, input } of cadences)
        if (input.value !== '') changes[part] = { everyStepCount: Number(input.value) };
      if (Object.keys(changes).length + given.count === 0 && rateField.value === '')
        throw new Error('Nothing is filled in');
      const factor = Number(rateField.value.replace(/x$/, ''));
      if (Number.isNaN(factor)) throw new Error(`Learning rate: expected a number, got "${rateField.value}"`);
      const answer = await call('TrainingService', 'updateJob', {
        name: job.name,
        etag: job.etag,
        requestId,
        ...(Object.keys(changes).length === 0 ? {} : { spec: changes as never }),
        ...(rateField.value === '' ? {} : { learningRateFactor: factor }),
        labels: given.set,
        removedLabels: given.removed,
      });
      if (answer.job !== undefined) changed(answer.job);
      const { learningRateBefore: before, learningRateAfter: after } = answer;
      const isJump = before !== undefined && after !== undefined && before !== after;
      notice(isJump ? `Changed: rate ${rateText(before)} → ${rateText(after)} at the next step` : 'Changed');
    },
  });
}

const nouns = { evaluation: 'evaluations', checkpoint: 'checkpoints', sample: 'samples' };

function rateText(value: unknown): string {
  return Number(value).toExponential(2);
}

function readLabels(text: string): { set: Record<string, string>; removed: string[]; count: number } {
  const pairs = text.split(',').filter((part) => part.trim() !== '');
  const set: [string, string][] = [];
  const removed: string[] = [];
  for (const pair of pairs) {
    const at = pair.indexOf('=');
    if (at < 1) throw new Error(`Labels: expected key=value, got "${pair.trim()}"`);
    const [key, value] = [pair.slice(0, at).trim(), pair.slice(at + 1).trim()];
    if (value === '') removed.push(key);
    else set.push([key, value]);
  }
  return { set: Object.fromEntries(set), removed, count: pairs.length };
}
