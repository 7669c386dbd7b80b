import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Tokenizer } from '../data/tokenizer.js';
import type { Llama } from '../model/llama.js';
import type { ChoiceQuestion } from '../plan/choiceQuestions.js';

/** A choice as a model scores it. */
export interface ChoiceScore {
  /** Sum of the log-probabilities of its tokens behind the question, nats. */
  logProbability: number;
  /** Of them. */
  tokenCount: number;
  /** UTF-8 bytes of its text. */
  byteCount: number;
}

export interface ChoiceReport {
  questionCount: number;
  /** Share of questions whose right choice has the highest log-probability; the first of equal ones counts. */
  accuracy: number;
  /** The same by log-probability per byte, so that long choices are not at a disadvantage. */
  normalizedAccuracy: number;
  /** Mean log-probability of the right choices, nats. */
  logProbability: number;
}

/**
 * Scores the choices of questions: each is read behind its question, which begins after an end of text as documents do in training. A
 * question that is too long with a choice loses its beginning; a choice that alone is too long throws.
 */
export async function scoreChoices(
  model: Llama,
  tokenizer: Tokenizer,
  { question, choices }: ChoiceQuestion,
): Promise<ChoiceScore[]> {
  const scores: ChoiceScore[] = [];
  for (const choice of choices) {
    const { tokens, choiceCount } = await tokensOf(tokenizer, question, choice);
    scores.push({
      logProbability: await logProbabilityOf(model, tokenizer.endOfTextId, tokens, choiceCount),
      tokenCount: choiceCount,
      byteCount: Buffer.byteLength(choice),
    });
  }
  return scores;
}

/** All questions; `onQuestion` is called after each. Gives way between them; throws when the signal is aborted. */
export async function evaluateChoices(
  model: Llama,
  tokenizer: Tokenizer,
  questions: readonly ChoiceQuestion[],
  { signal, onQuestion = () => {} }: { signal?: AbortSignal; onQuestion?: (done: number) => void } = {},
): Promise<ChoiceReport> {
  let right = 0;
  let normalized = 0;
  let sum = 0;
  for (const [index, entry] of questions.entries()) {
    await nextTurn();
    signal?.throwIfAborted();
    const scores = await scoreChoices(model, tokenizer, entry);
    const best = (value: (score: ChoiceScore) => number): number => {
      const values = scores.map(value);
      return values.indexOf(Math.max(...values));
    };
    if (best(({ logProbability }) => logProbability) === entry.answer) right++;
    if (best(({ logProbability, byteCount }) => logProbability / byteCount) === entry.answer) normalized++;
    sum += scores[entry.answer]!.logProbability;
    onQuestion(index + 1);
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

/** Both are encoded together, as the text would be; where a token would cross from one to the other, each by itself. */
async function tokensOf(
  tokenizer: Tokenizer,
  question: string,
  choice: string,
): Promise<{ tokens: number[]; choiceCount: number }> {
  const before = Array.from(await tokenizer.encode(question));
  const whole = Array.from(await tokenizer.encode(question + choice));
  if (whole.length > before.length && before.every((id, index) => whole[index] === id))
    return { tokens: whole, choiceCount: whole.length - before.length };
  const behind = Array.from(await tokenizer.encode(choice));
  return { tokens: [...before, ...behind], choiceCount: behind.length };
}

async function logProbabilityOf(
  model: Llama,
  endOfTextId: number,
  tokens: readonly number[],
  choiceCount: number,
): Promise<number> {
  const positions = model.config.maxPositionEmbeddings;
  if (choiceCount > positions)
    throw new RangeError(`A choice of ${choiceCount} tokens does not fit the model's ${positions} positions`);
  const kept = tokens.slice(-positions);
  const before = kept.length < tokens.length ? tokens[tokens.length - kept.length - 1]! : endOfTextId;
  const inputs = Int32Array.of(before, ...kept.slice(0, -1));
  const targets = Int32Array.from(kept, (id, index) => (index < kept.length - choiceCount ? -1 : id));
  const { device } = model;
  const result = device.newResult(0);
  try {
    device.clearResult(result);
    model.addLoss({ inputs, targets, batch: 1, time: kept.length }, result);
    return -(await device.readResult(result)).lossSum;
  } finally {
    device.releaseResult(result);
  }
}
