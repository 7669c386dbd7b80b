import { createHash } from 'node:crypto';
import { SteeredSchedule, type RunSpec, type RunUpdate } from '@relora/engine/plan';
import { UpdateJobRequest, type JobSpec, type UpdateJobResponse } from '@relora/sdk/contract';
import type { Principal } from '../access/principal.js';
import { quote } from '../errors.js';
import type { Job } from '../jobs/job.js';
import { FieldChecks } from './fieldChecks.js';
import { parseChange, stepCountsOf, toUpdate, updatesMax } from './jobUpdate.js';
import type { ApiParts } from './parts.js';
import { requireJob } from './requireJob.js';
import { parseJobName } from './resourceNames.js';
import { fieldName } from './settings.js';
import { parseEtag, requireDone } from './requireDone.js';
import { requireUndeleted, sortedLabels } from './submitJob.js';
import { toJob } from './toProto.js';

/** Changes the changeable settings of a job that has not ended. */
export async function updateJob(
  { control, store, config }: Pick<ApiParts, 'control' | 'store' | 'config'>,
  request: UpdateJobRequest,
  { tenant }: Principal,
): Promise<UpdateJobResponse> {
  const jobId = parseJobName(tenant, 'name', request.name);
  const before = await requireJob(store, jobId);
  requireUndeleted(before);
  const earlier = await store.updatesOf(jobId);
  const { spec = {} as Partial<JobSpec>, learningRateFactor, stop } = request;
  const checks = new FieldChecks();
  refuseOthers(checks, spec);
  const change = parseChange(
    checks,
    { spec: 'spec.', factor: 'learning_rate_factor' },
    { ...spec, learningRateFactor, stop },
    stepCountsOf(before.spec, earlier, { step: before.progress.step, stepsMax: config.stepsMax }),
  );
  const priority =
    spec.priority === undefined ? null : checks.integer('spec.priority', spec.priority, 0, -100, 100);
  const labels = checks.labels('labels', request.labels);
  const { removedLabels } = request;
  const requestId = checks.requestId(request.requestId);
  const version = parseEtag(checks, request.etag);
  const isEmpty = change === null && priority === null && Object.keys(labels).length === 0;
  if (isEmpty && removedLabels.length === 0)
    checks.add('name', 'with something that changes', 'nothing else');
  if (change !== null && earlier.length >= updatesMax)
    checks.add('spec', `at most ${updatesMax} updates of a job`, earlier.length + 1);
  const labelsAfter = new Set(Object.keys({ ...before.labels, ...labels }));
  for (const key of removedLabels) labelsAfter.delete(key);
  if (labelsAfter.size > 32) checks.add('labels', 'at most 32 labels', labelsAfter.size);
  checks.throwIfWrong();

  const wish = { change, priority, labels, removedLabels, digest: digestOf(request) };
  const result = await control.update(jobId, wish, { requestId, version });
  const job = requireDone(result, 'update', jobId, request);
  const updates = await store.updatesOf(jobId);
  return {
    job: { ...toJob(job), updates: updates.map(toUpdate) },
    ...(change === null
      ? { learningRateBefore: undefined, learningRateAfter: undefined }
      : ratesOf(job, earlier, updates)),
  };
}

/** Fields of a specification that may change; a list names the changeable parts of a field. */
const changeable: Readonly<Record<string, readonly string[] | null>> = {
  stepCount: null,
  priority: null,
  evaluation: ['everyStepCount', 'everySeconds'],
  checkpoint: ['everyStepCount', 'everySeconds', 'keepCount'],
  sample: ['everyStepCount', 'everySeconds'],
};

function refuseOthers(checks: FieldChecks, spec: Partial<JobSpec>): void {
  const refuse = (field: string, value: unknown): void =>
    checks.add(
      `spec.${field}`,
      'unset, since a run keeps it to its end; ForkJob makes a job with another',
      quote(JSON.stringify(value) ?? 'nothing'),
    );
  for (const [key, value] of Object.entries(spec)) {
    if (isUnset(value)) continue;
    const parts = changeable[key];
    if (parts === undefined) refuse(fieldName(key), value);
    for (const [part, inner] of Object.entries(parts ? (value as object) : {}))
      if (!isUnset(inner) && !parts!.includes(part)) refuse(`${fieldName(key)}.${fieldName(part)}`, inner);
  }
}

function isUnset(value: unknown): boolean {
  if (typeof value === 'string') return value === '' || value.endsWith('_UNSPECIFIED');
  return value === undefined || (Array.isArray(value) && value.length === 0);
}

/** Rate of the next step, without the last update and with it. */
function ratesOf(
  { spec, progress: { step } }: Job,
  earlier: readonly RunUpdate[],
  updates: readonly RunUpdate[],
): Pick<UpdateJobResponse, 'learningRateBefore' | 'learningRateAfter'> {
  return {
    learningRateBefore: scheduleOf(spec, earlier, step).learningRateAt(step),
    learningRateAfter: scheduleOf(spec, updates, step).learningRateAt(step),
  };
}

function scheduleOf(spec: RunSpec, updates: readonly RunUpdate[], present: number): SteeredSchedule {
  const schedule = new SteeredSchedule(spec);
  for (const { step, change } of updates) schedule.change(step ?? present, change);
  return schedule;
}

function digestOf(request: UpdateJobRequest): string {
  const labels = sortedLabels(request);
  const asked = UpdateJobRequest.encode({ ...request, labels, requestId: '', etag: '' }).finish();
  return createHash('sha256').update(asked).digest('hex');
}
