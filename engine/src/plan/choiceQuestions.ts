/** A question with its choices, of which one is correct. */
export interface ChoiceQuestion {
  question: string;
  choices: string[];
  /** Index of the correct choice. */
  answer: number;
}

/** A line that is not a question: what was expected and what was found. */
export class ChoiceLineInvalid extends Error {
  override name = 'ChoiceLineInvalid';

  constructor(
    readonly line: number,
    readonly expected: string,
    readonly got: string,
  ) {
    super(`Line ${line}: expected ${expected}, got ${got}`);
  }
}

const choicesMax = 64;

/**
 * Reads questions from JSON lines {"question", "choices", "answer"}; the answer is an index from 0, or the text of a choice. Empty lines
 * are ignored. Throws ChoiceLineInvalid.
 */
export function parseChoiceQuestions(text: string): ChoiceQuestion[] {
  return text
    .split('\n')
    .flatMap((line, index): ChoiceQuestion[] => (line.trim() === '' ? [] : [parseLine(line, index + 1)]));
}

function parseLine(text: string, line: number): ChoiceQuestion {
  const invalid = (expected: string, got: unknown): ChoiceLineInvalid =>
    new ChoiceLineInvalid(line, expected, (JSON.stringify(got) ?? 'none').slice(0, 80));
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw invalid('an object in JSON', text);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw invalid('an object in JSON', value);
  const entry = new Map(Object.entries(value));
  const [question, choices, answer] = ['question', 'choices', 'answer'].map((key) => entry.get(key));
  if (typeof question !== 'string') throw invalid('a text `question`', question);
  if (!Array.isArray(choices) || choices.length < 2 || choices.length > choicesMax)
    throw invalid(`a list \`choices\` of 2 to ${choicesMax} texts`, choices);
  const texts = choices.map((choice: unknown) => {
    if (typeof choice !== 'string' || choice === '') throw invalid('a text in `choices`', choice);
    return choice;
  });
  if (new Set(texts).size < texts.length) throw invalid('each of `choices` once', texts);
  const index = typeof answer === 'string' ? texts.indexOf(answer) : answer;
  if (!Number.isInteger(index) || (index as number) < 0 || (index as number) >= texts.length)
    throw invalid(`an \`answer\` from 0 to ${texts.length - 1}, or one of the choices`, answer);
  return { question, choices: texts, answer: index as number };
}
