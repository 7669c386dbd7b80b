import type { Dataset } from '../data/dataset.js';
import { ChoiceTooLong, encodeQuestions, type QuestionTokens } from '../evaluation/multipleChoice.js';
import { parseChoiceQuestions } from '../plan/choiceQuestions.js';
import type { RunSpec } from '../plan/runSpec.js';
import { RunMismatch } from './trainingErrors.js';

/** A set for evaluation in addition to the run's held-out part, ready to use. */
export interface ScoredSet {
  name: string;
  tokenCount: number;
  source:
    | { kind: 'dataset'; name: string; dataset: Dataset }
    | { kind: 'questions'; questions: readonly QuestionTokens[] };
}

/**
 * The evaluation sets of a specification. Questions are encoded once; with their choices they fit in a sequence of the run, whose memory
 * was planned. Throws RunMismatch at the start of the run, not after a week, if a set cannot be evaluated.
 */
export async function scoredSets(
  { evaluations, batch }: RunSpec,
  trained: Dataset,
  datasets: ReadonlyMap<string, Dataset>,
): Promise<ScoredSet[]> {
  const sets: ScoredSet[] = [];
  for (const { name, dataset: datasetName, questions, tokenCount } of evaluations) {
    if (datasetName === '') {
      sets.push({
        name,
        tokenCount,
        source: { kind: 'questions', questions: await encode(name, questions) },
      });
      continue;
    }
    const dataset = datasets.get(datasetName);
    if (dataset === undefined) throw new RangeError(`${datasetName} of the evaluation ${name} is not given`);
    const [wanted, found] = [trained, dataset].map(({ manifest }) => manifest.tokenizer.sha256);
    if (wanted !== found)
      throw new RunMismatch(
        `The tokenizer of ${datasetName}`,
        `SHA-256 ${wanted}, as it is trained with`,
        found!,
      );
    sets.push({ name, tokenCount, source: { kind: 'dataset', name: datasetName, dataset } });
  }
  return sets;

  async function encode(name: string, questions: string): Promise<QuestionTokens[]> {
    try {
      return await encodeQuestions(trained.tokenizer, parseChoiceQuestions(questions), batch.sequenceLength);
    } catch (error) {
      if (!(error instanceof ChoiceTooLong)) throw error;
      throw new RunMismatch(`The evaluation ${name}`, 'choices that fit in a sequence', error.message);
    }
  }
}
