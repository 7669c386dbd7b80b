import { encodeQuestions, evaluateChoices, heldOutLoss, meansOf, type Llama } from '@relora/engine';
import { Dataset, encodeAlike, type Tokenizer } from '@relora/engine/data';
import type { ModelEvaluation } from '../../jobs/modelEvaluations.js';
import type { EvaluateTask } from '../messages.js';
import { deviceFor } from './device.js';
import { loadModel } from './loadModel.js';

/** Scores a model on the held-out parts of data sets and on questions with choices. */
export async function evaluateModel(task: EvaluateTask, stop: AbortSignal): Promise<ModelEvaluation> {
  const device = await deviceFor(task.device, 'float32');
  const { model, tokenizer } = await loadModel(device, task);
  const datasets: ModelEvaluation['datasets'] = [];
  for (const { name, folder } of task.datasets)
    datasets.push({ dataset: name, ...(await onDataset(model, tokenizer, name, folder, task, stop)) });
  return { datasets, choices: task.questions.length === 0 ? null : await onQuestions() };

  async function onQuestions(): Promise<ModelEvaluation['choices']> {
    const { maxPositionEmbeddings: tokensMax } = model.config;
    const questions = await encodeQuestions(tokenizer, task.questions, tokensMax);
    const result = device.newResult(0);
    const report = await evaluateChoices(model, result, questions, stop);
    device.releaseResult(result);
    stop.throwIfAborted();
    return report;
  }
}

async function onDataset(
  model: Llama,
  tokenizer: Tokenizer,
  name: string,
  folder: string,
  { sequenceLength, tokenCount }: EvaluateTask,
  stop: AbortSignal,
): Promise<Omit<ModelEvaluation['datasets'][number], 'dataset'>> {
  const dataset = await Dataset.open(folder, { verify: false });
  const result = model.device.newResult(0);
  try {
    if (!(await encodeAlike(tokenizer, dataset.tokenizer))) throw new OtherTokenizer(name);
    const length = Math.min(sequenceLength, model.config.maxPositionEmbeddings);
    const options = { sequenceLength: length, sequenceCount: 1, tokenCount };
    const sum = await heldOutLoss(model, result, dataset, options, stop);
    stop.throwIfAborted();
    return { ...meansOf(sum!), tokenCount: sum!.count };
  } finally {
    model.device.releaseResult(result);
    await dataset.close();
  }
}

class OtherTokenizer extends Error {
  readonly reason = 'TOKENIZER_DIFFERS';

  constructor(dataset: string) {
    super(`${dataset} was prepared with a tokenizer that gives other tokens than the model's`);
  }
}
