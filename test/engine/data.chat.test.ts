import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { join } from 'node:path';
import { appendDataset, Batches, ChatTemplate, Dataset, jsonTokenizer } from '@relora/engine/data';
import { dataFolder, failure } from './dataFixtures.js';

const folder = fileURLToPath(new URL('../fixtures/chat/', import.meta.url));
const tokenizerJson = readFileSync(`${folder}tokenizer.json`, 'utf8');

interface Case {
  template: string;
  chat: string;
  messages: { role: string; content: string }[];
  text?: string;
  prompt?: string;
  ids?: number[];
  error?: string;
}
const { templates, cases } = JSON.parse(readFileSync(`${folder}expected.json`, 'utf8')) as {
  templates: Record<string, { template: string; tokens: Record<string, string> }>;
  cases: Case[];
};

const { source, prepare } = dataFolder();
const place = { file: 'chats.jsonl', place: 'line 1 at byte 0' };
const chatOf = (name: string) => ({ field: 'messages', ...templates[name]! });
const rowsOf = (chats: readonly object[]) => chats.map((chat) => JSON.stringify(chat)).join('\n');

describe.each(Object.keys(templates))('a chat by a template like that of %s', (name) => {
  const of = cases.filter(({ template }) => template === name);

  it('is the text that transformers makes of it, or refused with the reason that the template gives', () => {
    const template = new ChatTemplate(chatOf(name));
    for (const { messages, text, error } of of) {
      const render = () => template.render(messages, undefined, place).text;
      if (text === undefined) expect(render).toThrow(`chats.jsonl, line 1 at byte 0: ${error}`);
      else expect(render()).toBe(text);
    }
  });

  it('has the tokens of transformers, of which those alone are learned that an assistant says', async () => {
    const tokenizer = await jsonTokenizer(tokenizerJson, 'huggingFace');
    const good = of.filter(({ ids }) => ids !== undefined);
    const chat = chatOf(name);
    const path = await prepare([source('chats.jsonl', rowsOf(good), 'jsonl')], {
      chat,
      heldOutShare: 0,
      tokenizer: { kind: 'huggingFace', tokenizerJson },
    });
    const dataset = await Dataset.open(path, { verify: true });
    const { train } = dataset;
    let position = 0;
    for (const { ids, messages } of good) {
      const targets = train.read(position, ids!.length + 1);
      expect([...targets.subarray(0, -1)]).toEqual(ids);
      expect(targets.at(-1)).toBe(tokenizer.endOfTextId);
      train.mask(position, targets);
      // The separator after a chat does not belong to it.
      expect(targets.at(-1)).toBe(-1);
      const learned: number[][] = [];
      for (const [at, target] of targets.entries()) {
        if (target === -1) continue;
        if (at > 0 && targets[at - 1] !== -1) learned.at(-1)!.push(target);
        else learned.push([target]);
      }
      const texts = await Promise.all(learned.map(async (run) => (await tokenizer.decode(run)).trim()));
      const said = messages.filter(({ role }) => role === 'assistant').map(({ content }) => content.trim());
      expect(texts).toEqual(said);
      position += ids!.length + 1;
    }
    expect(position).toBe(train.tokenCount);
    await dataset.close();
  });

  it('is one document, whatever tokens it has within it, also behind others that have none', async () => {
    const good = of.filter(({ ids }) => ids !== undefined);
    const { endOfTextId } = await jsonTokenizer(tokenizerJson, 'huggingFace');
    const options = {
      chat: chatOf(name),
      heldOutShare: 0,
      tokenizer: { kind: 'huggingFace', tokenizerJson } as const,
      limits: { shardBytesMax: 50 }, // a chat spans several shards
    };
    const prepared = await prepare([source('chats.jsonl', rowsOf(good), 'jsonl')], options);
    const others = await prepare(
      [source('others.jsonl', rowsOf([chat('a', 'b'), chat('c', 'd')]), 'jsonl')],
      {
        ...options,
        chat: simple,
      },
    );
    const joined = join(others, '..', `joined-${name}`);
    const { train: shards } = await appendDataset(others, prepared, joined);
    const hasWithin = good.some(({ ids }) => ids!.includes(endOfTextId));
    expect(shards.shards.at(-1)!.ends !== undefined).toBe(hasWithin);
    expect(shards.shards[0]!.ends).toBeUndefined();
    if (name === 'mistral') expect(hasWithin).toBe(true);

    const dataset = await Dataset.open(joined, { verify: true });
    const { train } = dataset;
    const tokens = train.read(0, train.tokenCount);
    const ends = new Uint8Array(tokens.length);
    train.markEnds(0, tokens, endOfTextId, ends);
    const ofGood = good.reduce((sum, { ids }) => sum + ids!.length + 1, 0);
    let position = train.tokenCount - ofGood;
    expect(ends.subarray(0, position).filter((end) => end === 1)).toHaveLength(2);
    const places: number[] = [];
    for (const { ids } of good) places.push((position += ids!.length + 1) - 1);
    const marked = [...ends.keys()].filter((at) => ends[at] === 1);
    expect(marked.slice(2)).toEqual(places);

    // As a run reads them, from any position.
    const batches = new Batches(train, { sequenceLength: 7, seed: 1, cut: 2, endOfTextId });
    for (let sequence = 0; sequence < 2 * batches.sequencesPerEpoch; sequence++) {
      const first = batches.placeOf(sequence).position;
      const starts = Array.from({ length: 7 }, (_, at) => at).filter(
        (at) => at === 0 || marked.includes((first + at) % train.tokenCount),
      );
      const { documents } = batches.take(sequence, 1);
      expect([...new Set(documents)]).toEqual(starts);
    }
    await dataset.close();
  });

  it('is learned from behind what is put before an answer to the end of the message, with its marks', () => {
    const template = new ChatTemplate(chatOf(name));
    let compared = 0;
    for (const { messages, text, prompt } of of) {
      if (text === undefined || !text.startsWith(prompt!)) continue;
      compared++;
      const { spans } = template.render(messages, undefined, place);
      expect(spans.at(-1)).toEqual([prompt!.length, text.length]);
      expect(spans).toHaveLength(messages.filter(({ role }) => role === 'assistant').length);
    }
    expect(compared).toBeGreaterThan(1);
  });
});

const simple = {
  field: 'messages',
  template: '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}',
  tokens: {},
};
const chat = (...texts: string[]) => ({
  messages: texts.map((content, index) => ({ role: index % 2 === 0 ? 'user' : 'assistant', content })),
});

describe('a template', () => {
  it('that leaves something out of earlier answers still says where they are', () => {
    // Like reasoning models, it writes thoughts only for the last message.
    const template = new ChatTemplate({
      ...simple,
      template:
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    });
    const { text, spans } = template.render(chat('a', 'one', 'b', 'two').messages, undefined, place);
    expect(text).toBe('<user>a</><assistant>one</><user>b</><assistant><think></think>two</>');
    expect(spans.map(([start, end]) => text.slice(start, end))).toEqual(['one</>', '<think></think>two</>']);
  });

  it('reads tools, and gives the same text on every day', () => {
    const template = new ChatTemplate({
      ...simple,
      template:
        "{{ strftime_now('%d %b %Y') }} {% for tool in tools %}{{ tool.name }} {% endfor %}{% for m in messages %}[{{ m.content }}]{% endfor %}",
    });
    const { text } = template.render(chat('a', 'b').messages, [{ name: 'clock' }], place);
    expect(text).toBe('26 Jul 2024 clock [a][b]');
  });

  it.each([
    [
      'never ends',
      '{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}',
      /took too long/,
    ],
    [
      'counts without end',
      '{% for i in range(1000000000) %}{% endfor %}',
      /a range of at most 100000, got 1000000000/,
    ],
    [
      'grows without end',
      '{% set ns = namespace(t="xxxxxxxxxxxxxxxx") %}{% for i in range(40) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}',
      /the template failed|a text of at most/,
    ],
    [
      'writes too much',
      '{% for i in range(100000) %}{{ "x" * 1 }}yyyyyyyyyyyyyyyyyyyyyyyy{% endfor %}',
      /at most 100000 characters|failed|too long/,
    ],
    ['calls what is not there', '{{ nothing() }}', /the template failed/],
  ])('that %s is ended with the row that it was given', (_, text, problem) => {
    const template = new ChatTemplate(
      { ...simple, template: text },
      { seconds: 1, lengthMax: 100_000, messagesMax: 10 },
    );
    const render = () => template.render(chat('a', 'b').messages, undefined, place);
    expect(render).toThrow(problem);
    expect(render).toThrow('chats.jsonl, line 1 at byte 0');
  });

  it('reaches nothing of the process', () => {
    for (const text of [
      "{{ messages.constructor.constructor('return process')() }}",
      "{{ ''.__class__ }}",
      '{{ process }}',
      '{{ globalThis }}',
      "{{ raise_exception.constructor('return 1')() }}",
    ]) {
      const template = new ChatTemplate({ ...simple, template: text });
      let found = '';
      try {
        found = template.render(chat('a', 'b').messages, undefined, place).text;
      } catch {
        continue;
      }
      expect(found.replace(/undefined|null/g, '')).toBe('');
    }
  });

  it('that is none is refused before a row is read', async () => {
    const file = source('chats.jsonl', rowsOf([chat('a', 'b')]), 'jsonl');
    const preparing = prepare([file], { chat: { ...simple, template: '{% for %}' } });
    await failure(preparing, 'CHAT_TEMPLATE_INVALID');
  });
});

describe('a row that is no chat', () => {
  it.each([
    [{ messages: 'text' }, /expected a list of messages in "messages", got/],
    [{ messages: [] }, /expected a list of messages/],
    [{ other: 1 }, /expected a list of messages/],
    [{ messages: [{ content: 'x' }] }, /expected a text "role" in message 1/],
    [{ messages: [{ role: 'user', content: 7 }] }, /expected text in "content" of message 1/],
    [
      { messages: [{ role: 'user', content: 'x' }] },
      /expected a message of the role "assistant" to learn from/,
    ],
  ])('as %j is named with its place and fault, and may be skipped', async (row, problem) => {
    const file = () => source('chats.jsonl', rowsOf([chat('a', 'b'), row, chat('c', 'd')]), 'jsonl');
    const refused = await failure(prepare([file()], { chat: simple }), 'CHAT_INVALID');
    expect(refused.message).toMatch(problem);
    expect(refused.message).toMatch(/^chats\.jsonl, line 2 at byte \d+: /);
    const dataset = await Dataset.open(
      await prepare([file()], { chat: simple, skipInvalid: { count: 1 }, heldOutShare: 0 }),
      { verify: true },
    );
    expect(dataset.manifest.train.documents).toBe(2);
    await dataset.close();
  });

  it('because its file has no lists is refused with the format', async () => {
    const refused = await failure(
      prepare([source('chats.csv', 'messages\nx\n', 'csv')], { chat: simple }),
      'OPTIONS_INVALID',
    );
    expect(refused.message).toContain('jsonl or json: other formats have no lists of messages');
  });
});

it('chats of bytes have their answers and their marks as targets, from a JSON list too', async () => {
  const text = JSON.stringify([chat('é', 'ja 🍎'), chat('b', 'c')]);
  const path = await prepare([source('chats.json', text, 'json')], { chat: simple, heldOutShare: 0 });
  const dataset = await Dataset.open(path, { verify: true });
  const { train, manifest } = dataset;
  const targets = train.read(0, train.tokenCount);
  train.mask(0, targets);
  const bytes = Buffer.from([...targets].filter((target) => target !== -1));
  expect(bytes.toString()).toBe('assistant: ja 🍎\nassistant: c\n');
  expect(manifest.train.trained).toEqual({ tokens: bytes.length, bytes: bytes.length });
  await dataset.close();
});
