import type { Command } from 'commander';
import { ExportedWeights, type EvaluateModelResponse } from '@relora/sdk';
import { evaluationText } from './evaluationText.js';
import { figure, table } from './format.js';
import { jobName, type Run } from './session.js';
import { readTextFile, wholeNumber } from './specOptions.js';

interface EvaluateFlags {
  dataset?: string[];
  tokens?: number;
  questions?: string;
  best?: boolean;
}

/** Evaluates a trained model. */
export function addEvaluateCommand(program: Command, run: Run): void {
  program
    .command('evaluate <model>')
    .description('evaluate a job or an artifact: perplexity on data sets, and multiple-choice questions')
    .option('--dataset <name...>', 'data sets on whose held-out part to evaluate')
    .option('--tokens <n>', 'tokens of each data set, 0 for all; by default 65536', wholeNumber)
    .option('--questions <file>', 'file of JSON lines {"question", "choices", "answer"}')
    .option('--best', 'of a job: the checkpoint with its lowest held-out loss')
    .action((model: string, { dataset = [], tokens, questions, best }: EvaluateFlags) =>
      run(async ({ client, output, signal }) => {
        const found = await client.evaluate(jobName(model), {
          datasets: dataset.map((name) => (name.includes('/') ? name : `datasets/${name}`)),
          ...(tokens !== undefined && { tokenCount: tokens }),
          ...(questions !== undefined && { questions: await readTextFile(questions) }),
          ...(best && { weights: ExportedWeights.BEST }),
          signal,
        });
        output.result(found, () => answerText(found));
      }),
    );
}

function answerText({ step, datasets, choices }: EvaluateModelResponse): string[] {
  const rows = datasets.map(({ dataset, loss, perplexity, bitsPerByte, tokenCount }) => [
    dataset,
    loss.toFixed(4),
    figure(perplexity),
    bitsPerByte.toFixed(4),
    String(tokenCount),
  ]);
  return [
    `Weights after ${step} steps.`,
    ...(rows.length === 0 ? [] : table([['DATA SET', 'LOSS', 'PERPLEXITY', 'BITS/BYTE', 'TOKENS'], ...rows])),
    ...(choices === undefined ? [] : [`${evaluationText({ choices, dataset: undefined })}.`]),
  ];
}
