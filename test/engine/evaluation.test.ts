import { encodeQuestions, evaluateChoices, Llama, logProbabilityOf, openDevice } from '@relora/engine';
import { bytesTokenizer } from '@relora/engine/data';
import { ChoiceLineInvalid, parseChoiceQuestions } from '@relora/engine/plan';
import { describe, expect, it } from 'vitest';
import { referenceLogits, tinyConfig } from './llamaReference.js';

describe('questions', () => {
  it('are read line by line, with the answer by its index or its text', () => {
    const lines = [
      '{"question": "2+2=", "choices": ["3", "4"], "answer": 1}',
      '',
      '{"question": "", "choices": ["a", "b", "c"], "answer": "a", "note": "passed over"}',
    ];
    expect(parseChoiceQuestions(lines.join('\n'))).toEqual([
      { question: '2+2=', choices: ['3', '4'], answer: 1 },
      { question: '', choices: ['a', 'b', 'c'], answer: 0 },
    ]);
  });

  it.each([
    ['{', /Line 2: expected an object in JSON, got "\{"/],
    ['[1]', /Line 2: expected an object in JSON, got \[1\]/],
    ['{"choices": ["a", "b"], "answer": 0}', /Line 2: expected a text `question`, got none/],
    ['{"question": "q", "choices": ["a"], "answer": 0}', /a list `choices` of 2 to 64 texts, got \["a"\]/],
    ['{"question": "q", "choices": ["a", 7], "answer": 0}', /a text in `choices`, got 7/],
    ['{"question": "q", "choices": ["a", ""], "answer": 0}', /a text in `choices`, got ""/],
    ['{"question": "q", "choices": ["a", "a"], "answer": 0}', /each of `choices` once/],
    [
      '{"question": "q", "choices": ["a", "b"], "answer": 2}',
      /an `answer` from 0 to 1, or one of the choices, got 2/,
    ],
    ['{"question": "q", "choices": ["a", "b"], "answer": "c"}', /an `answer` .*, got "c"/],
    ['{"question": "q", "choices": ["a", "b"], "__proto__": {"answer": 0}}', /an `answer` .*, got none/],
  ])('that read %s are refused with their line', (text, message) => {
    const parse = () => parseChoiceQuestions(`{"question":"q","choices":["a","b"],"answer":0}\n${text}\n`);
    expect(parse).toThrow(ChoiceLineInvalid);
    expect(parse).toThrow(message);
  });
});

describe('choices', () => {
  const tokenizer = bytesTokenizer();

  async function tinyModel(device: 'native' | 'reference') {
    const opened = await openDevice({ device, precision: 'float32', threads: 1 });
    return Llama.create(opened, tinyConfig({ vocabSize: 257, maxPositionEmbeddings: 32 }), 5);
  }

  async function score(
    model: Llama,
    questions: Parameters<typeof encodeQuestions>[1],
    signal = new AbortController().signal,
  ) {
    const result = model.device.newResult(0);
    const encoded = await encodeQuestions(tokenizer, questions, model.config.maxPositionEmbeddings);
    const report = await evaluateChoices(model, result, encoded, signal);
    model.device.releaseResult(result);
    return report;
  }

  /** Log-probability of the tokens of one text after another, from float64 logits. */
  async function expected(model: Llama, question: string, choice: string): Promise<number> {
    const before = Array.from(await tokenizer.encode(question));
    const behind = Array.from(await tokenizer.encode(choice));
    const positions = model.config.maxPositionEmbeddings;
    const ids = [tokenizer.endOfTextId, ...before, ...behind].slice(-positions - 1);
    const logits = referenceLogits(model, ids.slice(0, -1));
    const { vocabSize } = model.config;
    let sum = 0;
    for (let at = ids.length - behind.length; at < ids.length; at++) {
      const row = logits.subarray((at - 1) * vocabSize, at * vocabSize);
      const highest = row.reduce((most, value) => Math.max(most, value), -Infinity);
      const normalizer = row.reduce((total, value) => total + Math.exp(value - highest), 0);
      sum += row[ids[at]!]! - highest - Math.log(normalizer);
    }
    return sum;
  }

  it.each(['native', 'reference'] as const)(
    'are scored on %s by the log-probabilities that float64 gives them, also where the question is cut',
    async (device) => {
      const model = await tinyModel(device);
      for (const question of [
        '',
        'The sky is ',
        'A question that is longer than the model has positions: ',
      ]) {
        const choices = ['blue', 'a rather long choice', 'é'];
        const [encoded] = await encodeQuestions(tokenizer, [{ question, choices, answer: 0 }], 32);
        const result = model.device.newResult(0);
        for (const [index, choice] of choices.entries()) {
          const tokens = encoded!.choices[index]!;
          expect(await logProbabilityOf(model, result, tokens)).toBeCloseTo(
            await expected(model, question, choice),
            3,
          );
          const bytes = Buffer.byteLength(choice);
          expect([tokens.targets.filter((id) => id !== -1).length, tokens.byteCount]).toEqual([bytes, bytes]);
        }
        model.device.releaseResult(result);
      }
      model.dispose();
    },
  );

  it('are counted as right by their sum, and by their bytes', async () => {
    const model = await tinyModel('native');
    const questions = ['One ', 'Two ', 'Three ', 'Four '].flatMap((question) => [
      { question, choices: ['a', 'many more bytes'], answer: 0 },
      { question, choices: ['a', 'many more bytes'], answer: 1 },
    ]);
    const report = await score(model, questions);
    // Each pair is the same question with both answers: one of them is correct, whatever the model answers.
    expect(report).toMatchObject({ questionCount: 8, accuracy: 0.5, normalizedAccuracy: 0.5 });
    // An untrained model finds all bytes about equally likely: the short choice always has the higher sum.
    const short = await score(
      model,
      questions.filter(({ answer }) => answer === 0),
    );
    expect(short!.accuracy).toBe(1);
    const logs = await Promise.all(
      questions.map(
        async ({ question, choices, answer }) => await expected(model, question, choices[answer]!),
      ),
    );
    expect(report!.logProbability).toBeCloseTo(logs.reduce((sum, value) => sum + value, 0) / 8, 3);
    model.dispose();
  });

  it('that alone do not fit end with an error, and a call that is given up with nothing', async () => {
    const model = await tinyModel('native');
    const long = { question: 'q', choices: ['a'.repeat(33), 'b'], answer: 1 };
    await expect(encodeQuestions(tokenizer, [long], 32)).rejects.toThrow(
      /A choice of 33 tokens does not fit in the 32 that are read at once/,
    );
    const short = [{ question: 'q', choices: ['a', 'b'], answer: 0 }];
    expect(await score(model, short, AbortSignal.abort())).toBeNull();
    model.dispose();
  });
});
