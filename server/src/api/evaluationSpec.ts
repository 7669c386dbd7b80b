import {
  ChoiceLineInvalid,
  namedEvaluationSettings,
  parseChoiceQuestions,
  withCadence,
} from '@relora/engine/plan';
import type { NamedEvaluationSettings } from '@relora/engine/plan';
import type { NamedEvaluationSpec } from '@relora/sdk/contract';
import type { DatasetHead } from '../datasets/dataset.js';
import { quote } from '../errors.js';
import type { FieldChecks } from './fieldChecks.js';
import { checkDataset, checkTokenizer, type NamedDataset } from './mixtureSpec.js';
import type { SpecReader } from './specReader.js';

/** Limited because each evaluation has its own series in the metrics. */
export const evaluationsMax = 16;
/** Limit for all questions of a job: a specification is stored with its job and is part of every answer about it. */
const questionBytesMax = 262_144;
const questionsMax = 10_000;

/** What a job is evaluated on while it trains, by name. */
export function parseEvaluations(
  reader: SpecReader,
  asked: readonly NamedEvaluationSpec[],
  find: (name: string) => DatasetHead | undefined,
  trained: NamedDataset,
): NamedEvaluationSettings[] {
  const { checks } = reader;
  checks.count('spec.evaluations', asked, evaluationsMax);
  let questionBytes = 0;
  return asked.slice(0, evaluationsMax).map((entry, index) => {
    const { name, dataset, questions } = entry;
    const field = `spec.evaluations[${index}]`;
    if (!/^[a-z][a-z0-9_-]{0,62}$/.test(name))
      checks.add(`${field}.name`, '1 to 63 of a-z 0-9 _ -, beginning with a letter', quote(name));
    else if (asked.findIndex((other) => other.name === name) < index)
      checks.add(`${field}.name`, 'each name once', quote(name));
    if ((dataset === '') === (questions === ''))
      checks.add(field, 'exactly one of dataset and questions', dataset === '' ? 'neither' : 'both');
    else if (dataset !== '') checkHeldOut(checks, `${field}.dataset`, dataset, find(dataset), trained);
    else {
      questionBytes += Buffer.byteLength(questions);
      if (questionBytes > questionBytesMax)
        checks.add(
          `${field}.questions`,
          `at most ${questionBytesMax} bytes in all evaluations`,
          questionBytes,
        );
      else checkQuestions(checks, `${field}.questions`, questions);
    }
    const settings = reader.read(field, namedEvaluationSettings, withCadence(entry));
    return { name, dataset, questions, ...settings };
  });
}

function checkHeldOut(
  checks: FieldChecks,
  field: string,
  name: string,
  head: DatasetHead | undefined,
  trained: NamedDataset,
): void {
  checkDataset(checks, field, name, head);
  checkTokenizer(checks, field, trained, head);
  if (head?.prepared?.heldOut.tokenCount === 0)
    checks.add(field, 'a data set with a held-out part', `${name}, of which nothing is held out`);
}

/** The questions of a text, one per line; problems are added to `checks`. */
export function checkQuestions(checks: FieldChecks, field: string, text: string) {
  try {
    const questions = parseChoiceQuestions(text);
    if (questions.length > questionsMax)
      checks.add(field, `at most ${questionsMax} of them`, questions.length);
    return questions;
  } catch (error) {
    if (!(error instanceof ChoiceLineInvalid)) throw error;
    checks.add(field, `in line ${error.line} ${error.expected}`, error.got);
    return [];
  }
}
