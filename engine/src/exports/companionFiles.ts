import { chatTemplatePattern } from '../plan/chatTemplates.js';
import { idsOf, objectOf, tokenName } from '../plan/endTokens.js';
import type { WeightSource } from './weightSource.js';

type Source = Pick<WeightSource, 'tokenizerJson' | 'endOfTextId' | 'modelFiles' | 'config'>;

/** Token ids for config.json. */
export interface TokenIds {
  bos_token_id: unknown;
  eos_token_id: unknown;
  pad_token_id?: unknown;
}

/** Those of the model that the job started from; without one a text begins and ends with the same token, as in training. */
export function tokenIdsOf({ modelFiles, endOfTextId }: Source): TokenIds {
  const before = objectOf(modelFiles['config.json']);
  if (modelFiles['config.json'] === undefined)
    return { bos_token_id: endOfTextId, eos_token_id: endOfTextId };
  return {
    bos_token_id: before.bos_token_id ?? null,
    eos_token_id: withEnd(before.eos_token_id, endOfTextId),
    ...(before.pad_token_id === undefined ? {} : { pad_token_id: before.pad_token_id }),
  };
}

/** Further files of an export besides weights, config.json and tokenizer.json, by name. Files that need no change keep their bytes. */
export function companionFiles(source: Source): [name: string, text: string][] {
  const { modelFiles, endOfTextId } = source;
  const endOfText = tokenText(source.tokenizerJson, endOfTextId);
  const files: [string, string][] = [];
  const generation = modelFiles['generation_config.json'];
  files.push([
    'generation_config.json',
    generation === undefined
      ? json(tokenIdsOf(source))
      : changed(generation, ({ eos_token_id: ids }) => ({ eos_token_id: withEnd(ids, endOfTextId) })),
  ]);
  const endToken = (before: Readonly<Record<string, unknown>>) =>
    tokenName(before.eos_token) === endOfText ? {} : { eos_token: endOfText };
  const tokenizer = modelFiles['tokenizer_config.json'];
  files.push([
    'tokenizer_config.json',
    tokenizer === undefined ? tokenizerConfig(source, endOfText) : changed(tokenizer, endToken),
  ]);
  const special = modelFiles['special_tokens_map.json'];
  if (special !== undefined) files.push(['special_tokens_map.json', changed(special, endToken)]);
  for (const name of ['chat_template.jinja', 'chat_template.json'] as const) {
    const template = modelFiles[name];
    if (template !== undefined) files.push([name, template]);
  }
  for (const [name, template] of Object.entries(modelFiles))
    if (template !== undefined && chatTemplatePattern.test(name)) files.push([name, template]);
  return files;
}

/** The template that converts a chat to text; null if there is none, or several. */
export function chatTemplateOf({ modelFiles }: Pick<Source, 'modelFiles'>): string | null {
  const file = modelFiles['chat_template.jinja'];
  const inConfig = objectOf(modelFiles['tokenizer_config.json']).chat_template;
  return file ?? (typeof inConfig === 'string' ? inConfig : null);
}

/** End tokens other than that of the training data. */
export function otherEndIds(source: Source): number[] {
  const inConfig = idsOf(tokenIdsOf(source).eos_token_id);
  const inGeneration = idsOf(objectOf(source.modelFiles['generation_config.json']).eos_token_id);
  return [...new Set([...inConfig, ...inGeneration])].filter((id) => id !== source.endOfTextId);
}

/** The original end ids if they include that of the training data; otherwise this id replaces a single one, or precedes those of a list. */
function withEnd(before: unknown, endOfTextId: number): unknown {
  if (idsOf(before).includes(endOfTextId)) return before;
  return Array.isArray(before) ? [endOfTextId, ...idsOf(before)] : endOfTextId;
}

/** Returns the same text if no value changes. */
function changed(
  text: string,
  change: (before: Readonly<Record<string, unknown>>) => Record<string, unknown>,
): string {
  const before = objectOf(text);
  const changes = Object.entries(change(before)).filter(([key, value]) => before[key] !== value);
  return changes.length === 0 ? text : json({ ...before, ...Object.fromEntries(changes) });
}

function tokenizerConfig({ config }: Source, endOfText: string): string {
  return json({
    tokenizer_class: 'PreTrainedTokenizerFast',
    bos_token: endOfText,
    eos_token: endOfText,
    model_max_length: config.maxPositionEmbeddings,
    clean_up_tokenization_spaces: false,
  });
}

/** Also finds a token that is only in the vocabulary: under another name the library would add a new one. */
function tokenText(tokenizerJson: string, id: number): string {
  const { added_tokens: added = [], model } = JSON.parse(tokenizerJson) as {
    added_tokens?: { id: number; content: string }[] | null;
    model: { vocab: Record<string, number> | [string, number][] };
  };
  const inAdded = added?.find((token) => token.id === id)?.content;
  if (inAdded !== undefined) return inAdded;
  if (Array.isArray(model.vocab)) return model.vocab[id]![0];
  for (const token of Object.keys(model.vocab)) if (model.vocab[token] === id) return token;
  throw new Error(`The tokenizer has no token ${id}`); // its existence was checked when the data set was prepared
}

function json(value: object): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}
