import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Tokenizer } from '../data/tokenizer.js';
import type { ResultBuffer } from '../device/device.js';
import type { Llama } from '../model/llama.js';
import type { ChoiceQuestion } from '../plan/choiceQuestions.js';
import type { ChoiceReport } from '../plan/trainingEvent.js';

/** A choice as the model reads it: after its question, which follows an end-of-text token as documents do in training. */
export interface ChoiceTokens {
  inputs: Int32Array;
  /** -1 except for the tokens of the choice. */
  targets: Int32Array;
  /** UTF-8 bytes of its text. */
  byteCount: number;
}

export interface QuestionTokens {
  choices: ChoiceTokens[];
  /** Index of the correct choice. */
  answer: number;
}

/** A choice that is too long even without its question. */
export class ChoiceTooLong extends RangeError {
  override name = 'ChoiceTooLong';
}

/**
 * Encodes questions for a model that reads at most `tokensMax` tokens of each: a question that is too long together with a choice loses its
 * beginning.
 */
export async function encodeQuestions(
  tokenizer: Tokenizer,
  questions: readonly ChoiceQuestion[],
  tokensMax: number,
): Promise<QuestionTokens[]> {
  const encoded: QuestionTokens[] = [];
  for (const { question, choices, answer } of questions) {
    const tokens: ChoiceTokens[] = [];
    for (const choice of choices) tokens.push(await encodeChoice(tokenizer, question, choice, tokensMax));
    encoded.push({ choices: tokens, answer });
  }
  return encoded;
}

/** Sum of the log-probabilities of a choice's tokens after its question, in nats. */
export async function logProbabilityOf(
  model: Llama,
  result: ResultBuffer,
  { inputs, targets }: ChoiceTokens,
): Promise<number> {
  const { device } = model;
  device.clearResult(result);
  model.addLoss({ inputs, targets, batch: 1, time: inputs.length }, result);
  return -(await device.readResult(result)).lossSum;
}

/** Evaluates all questions; clears the result buffer. Yields to the event loop between questions; null if the signal is aborted. */
export async function evaluateChoices(
  model: Llama,
  result: ResultBuffer,
  questions: readonly QuestionTokens[],
  signal: AbortSignal,
): Promise<ChoiceReport | null> {
  let right = 0;
  let normalized = 0;
  let sum = 0;
  for (const { choices, answer } of questions) {
    const scores: number[] = [];
    for (const choice of choices) {
      await nextTurn();
      if (signal.aborted) return null;
      scores.push(await logProbabilityOf(model, result, choice));
    }
    if (indexOfMost(scores) === answer) right++;
    if (indexOfMost(scores.map((score, index) => score / choices[index]!.byteCount)) === answer) normalized++;
    sum += scores[answer]!;
  }
  const questionCount = questions.length;
  const mean = (total: number): number => (questionCount === 0 ? 0 : total / questionCount);
  return {
    questionCount,
    accuracy: mean(right),
    normalizedAccuracy: mean(normalized),
    logProbability: mean(sum),
  };
}

const indexOfMost = (values: readonly number[]): number => values.indexOf(Math.max(...values));

/** Question and choice are encoded together, as in running text; if a token would span both, each is encoded separately. */
async function encodeChoice(
  tokenizer: Tokenizer,
  question: string,
  choice: string,
  tokensMax: number,
): Promise<ChoiceTokens> {
  const before = Array.from(await tokenizer.encode(question));
  const whole = Array.from(await tokenizer.encode(question + choice));
  const isWhole = whole.length > before.length && before.every((id, index) => whole[index] === id);
  const tokens = isWhole ? whole : [...before, ...Array.from(await tokenizer.encode(choice))];
  const choiceCount = tokens.length - before.length;
  if (choiceCount > tokensMax)
    throw new ChoiceTooLong(
      `A choice of ${choiceCount} tokens does not fit in the ${tokensMax} that are read at once`,
    );
  const kept = tokens.slice(-tokensMax);
  const first =
    kept.length < tokens.length ? tokens[tokens.length - kept.length - 1]! : tokenizer.endOfTextId;
  return {
    inputs: Int32Array.of(first, ...kept.slice(0, -1)),
    targets: Int32Array.from(kept, (id, index) => (index < kept.length - choiceCount ? -1 : id)),
    byteCount: Buffer.byteLength(choice),
  };
}
