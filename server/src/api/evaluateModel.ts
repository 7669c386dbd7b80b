import { ChoiceLineInvalid, parseChoiceQuestions, type ChoiceQuestion } from '@relora/engine/plan';
import type { EvaluateModelRequest, EvaluateModelResponse } from '@relora/sdk/contract';
import { quote, ServiceError } from '../errors.js';
import type { CallContext } from '../grpc/service.js';
import { FieldChecks } from './fieldChecks.js';
import { checkModel, findModel } from './findModel.js';
import type { ApiParts } from './parts.js';
import { datasetIdOf } from './resourceNames.js';
import { taskError } from './taskError.js';

const datasetsMax = 16;
const questionsMax = 10_000;

/** Scores a model in a child process, which ends with the call. */
export async function evaluateModel(
  parts: ApiParts,
  request: EvaluateModelRequest,
  { signal, caller: { tenant } }: Pick<CallContext, 'signal' | 'caller'>,
): Promise<EvaluateModelResponse> {
  const { datasets, stage, tasks, stopping } = parts;
  const checks = new FieldChecks();
  checkModel(checks, request);
  const tokenCount = checks.integer('token_count', request.tokenCount, 65_536, 0, 2 ** 40);
  checks.count('datasets', request.datasets, datasetsMax);
  const questions = parseQuestions(checks, request.questions);
  if (request.datasets.length === 0 && questions.length === 0)
    checks.add('datasets', 'a data set at least, or questions', 'neither');
  for (const [index, name] of request.datasets.entries())
    if (datasetIdOf(tenant, name) === undefined)
      checks.add(`datasets[${index}]`, 'datasets/{dataset}', quote(name));
  checks.throwIfWrong();

  const { folders, sequenceLength, step, ...model } = await findModel(parts, tenant, request);
  const sets: { name: string; folder: string }[] = [];
  for (const name of request.datasets) {
    const datasetId = datasetIdOf(tenant, name)!;
    const head = await datasets.findHead(datasetId);
    if (head === undefined) throw new ServiceError('DATASET_NOT_FOUND', { datasetId });
    if (head.state !== 'ready')
      throw new ServiceError('DATASET_NOT_READY', { datasetId, state: head.state.toUpperCase() });
    sets.push({ name, folder: datasets.preparedFolder(datasetId) });
    folders.push(`datasets/${datasetId}/prepared`);
  }
  const taken: (() => void)[] = [];
  const ended = AbortSignal.any([signal, stopping]);
  try {
    for (const folder of new Set(folders)) taken.push(await stage.take(folder));
    const task = { ...model, datasets: sets, sequenceLength, tokenCount, questions };
    const { datasets: measured, choices } = await tasks.evaluateModel(task, ended);
    return {
      step,
      datasets: measured.map((entry) => ({ ...entry, epochs: 0 })),
      choices: choices ?? undefined,
    };
  } catch (error) {
    throw taskError(error, request.model, signal, stopping);
  } finally {
    for (const release of taken) release();
  }
}

function parseQuestions(checks: FieldChecks, text: string): ChoiceQuestion[] {
  try {
    const questions = parseChoiceQuestions(text);
    if (questions.length > questionsMax)
      checks.add('questions', `at most ${questionsMax} of them`, questions.length);
    return questions;
  } catch (error) {
    if (!(error instanceof ChoiceLineInvalid)) throw error;
    checks.add('questions', `in line ${error.line} ${error.expected}`, error.got);
    return [];
  }
}
