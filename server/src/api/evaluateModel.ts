import type { EvaluateModelRequest, EvaluateModelResponse } from '@relora/sdk/contract';
import { quote, ServiceError } from '../errors.js';
import type { CallContext } from '../grpc/service.js';
import { checkQuestions } from './evaluationSpec.js';
import { FieldChecks } from './fieldChecks.js';
import { checkModel, findModel, wasPruned } from './findModel.js';
import type { ApiParts } from './parts.js';
import { datasetIdOf } from './resourceNames.js';
import { taskError } from './taskError.js';

const datasetsMax = 16;

/** Scores a model in a child process, which ends with the call. */
export async function evaluateModel(
  parts: ApiParts,
  request: EvaluateModelRequest,
  { signal, caller: { tenant } }: Pick<CallContext, 'signal' | 'caller'>,
): Promise<EvaluateModelResponse> {
  const { datasets, stage, tasks, stopping, store } = parts;
  const checks = new FieldChecks();
  checkModel(checks, request);
  const tokenCount = checks.integer('token_count', request.tokenCount, 65_536, 0, 2 ** 40);
  checks.count('datasets', request.datasets, datasetsMax);
  const questions = checkQuestions(checks, 'questions', request.questions);
  if (request.datasets.length === 0 && questions.length === 0)
    checks.add('datasets', 'a data set at least, or questions', 'neither');
  for (const [index, name] of request.datasets.entries())
    if (datasetIdOf(tenant, name) === undefined)
      checks.add(`datasets[${index}]`, 'datasets/{dataset}', quote(name));
  checks.throwIfWrong();

  const sets: { name: string; folder: string }[] = [];
  for (const name of request.datasets) {
    const datasetId = datasetIdOf(tenant, name)!;
    const head = await datasets.findHead(datasetId);
    if (head === undefined) throw new ServiceError('DATASET_NOT_FOUND', { datasetId });
    if (head.state !== 'ready')
      throw new ServiceError('DATASET_NOT_READY', { datasetId, state: head.state.toUpperCase() });
    sets.push({ name, folder: datasets.preparedFolder(datasetId) });
  }
  const ended = AbortSignal.any([signal, stopping]);
  for (;;) {
    const { folders, sequenceLength, step, jobId, ...model } = await findModel(parts, tenant, request);
    const prepared = request.datasets.map((name) => `datasets/${datasetIdOf(tenant, name)!}/prepared`);
    const taken: (() => void)[] = [];
    try {
      for (const folder of new Set([...folders, ...prepared])) taken.push(await stage.take(folder));
      const task = { ...model, datasets: sets, sequenceLength, tokenCount, questions };
      const found = await tasks.evaluateModel(task, ended);
      const { datasets: measured, choices } = found;
      // Stored before the answer: a client that has the answer also finds it with the job.
      await store.keepEvaluation(jobId, { timeMs: Date.now(), model: request.model, step, ...found });
      return {
        step,
        datasets: measured.map((entry) => ({ ...entry, epochs: 0 })),
        choices: choices ?? undefined,
      };
    } catch (error) {
      if (ended.aborted || !(await wasPruned(parts, tenant, request.model, model.source)))
        throw taskError(error, request.model, signal, stopping);
    } finally {
      for (const release of taken) release();
    }
  }
}
