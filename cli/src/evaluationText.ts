import type { Job } from '@relora/sdk';
import { figure } from './format.js';

type NamedEvaluation = NonNullable<Job['progress']>['evaluations'][number];
type ChoiceEvaluation = NonNullable<NamedEvaluation['choices']>;

/** The result of an evaluation in one line. */
export function evaluationText({ dataset, choices }: Pick<NamedEvaluation, 'dataset' | 'choices'>): string {
  if (choices !== undefined) return choicesText(choices);
  if (dataset === undefined) return '';
  const { loss, perplexity, bitsPerByte } = dataset;
  return `loss ${loss.toFixed(4)}, perplexity ${figure(perplexity)}, ${bitsPerByte.toFixed(4)} bits/byte`;
}

/** The number that stands for an evaluation in a table: the share of correct answers, or the loss. */
export function evaluationFigure({ dataset, choices }: NamedEvaluation): string {
  return choices === undefined ? (dataset?.loss.toFixed(4) ?? '–') : percent(choices.accuracy);
}

function choicesText({
  questionCount,
  accuracy,
  normalizedAccuracy,
  logProbability,
}: ChoiceEvaluation): string {
  return `${questionCount} questions: ${percent(accuracy)} right, ${percent(normalizedAccuracy)} by log-probability per byte; mean log-probability of the right choice ${figure(logProbability)}`;
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
