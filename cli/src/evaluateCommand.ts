import { readFile } from 'node:fs/promises';
import type { Command } from 'commander';
import { ExportedWeights, type EvaluateModelResponse } from '@relora/sdk';
import { pathProblem, UsageError } from './exitCodes.js';
import { figure, table } from './format.js';
import { jobName, type Run } from './session.js';
import { wholeNumber } from './specOptions.js';

interface EvaluateFlags {
  dataset?: string[];
  tokens?: number;
  questions?: string;
  best?: boolean;
}

/** Scores a model that was trained. */
export function addEvaluateCommand(program: Command, run: Run): void {
  program
    .command('evaluate <model>')
    .description('score a job or an artifact: perplexity on data sets, and questions with choices')
    .option('--dataset <name...>', 'data sets whose held-out part counts')
    .option('--tokens <n>', 'of each, 0 for all; by default 65536', wholeNumber)
    .option('--questions <file>', 'JSON lines {"question", "choices", "answer"}')
    .option('--best', 'of a job: the checkpoint of its lowest held-out loss')
    .action((model: string, { dataset = [], tokens, questions, best }: EvaluateFlags) =>
      run(async ({ client, output, signal }) => {
        const found = await client.evaluate(jobName(model), {
          datasets: dataset.map((name) => (name.includes('/') ? name : `datasets/${name}`)),
          ...(tokens !== undefined && { tokenCount: tokens }),
          ...(questions !== undefined && { questions: await readQuestions(questions) }),
          ...(best && { weights: ExportedWeights.BEST }),
          signal,
        });
        output.result(found, () => evaluationText(found));
      }),
    );
}

async function readQuestions(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    throw new UsageError(`${path} could not be read: ${pathProblem(error)}`);
  }
}

function evaluationText({ step, datasets, choices }: EvaluateModelResponse): string[] {
  const rows = datasets.map(({ dataset, loss, perplexity, bitsPerByte, tokenCount }) => [
    dataset,
    loss.toFixed(4),
    figure(perplexity),
    bitsPerByte.toFixed(4),
    String(tokenCount),
  ]);
  const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
  return [
    `Weights after ${step} steps.`,
    ...(rows.length === 0 ? [] : table([['DATA SET', 'LOSS', 'PERPLEXITY', 'BITS/BYTE', 'TOKENS'], ...rows])),
    ...(choices === undefined
      ? []
      : [
          `${choices.questionCount} questions: ${percent(choices.accuracy)} right, ${percent(choices.normalizedAccuracy)} by log-probability per byte; mean log-probability of the right choice ${figure(choices.logProbability)}.`,
        ]),
  ];
}
