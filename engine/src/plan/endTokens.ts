/** What the files of a model say about the token that ends a text. */
export interface EndTokens {
  /** Of config.json, else of generation_config.json; empty where neither names one. */
  ids: readonly number[];
  /** `eos_token` of tokenizer_config.json; null without. */
  name: string | null;
  /** A client named it: nothing else will do. Absent for what files say. */
  isAsked?: boolean;
}

/** Nothing is known: the names of well-known models decide. */
export const noEndTokens: EndTokens = { ids: [], name: null };

/** Reads what there is of config.json, generation_config.json and tokenizer_config.json; what is not JSON says nothing. */
export function endTokensOf(files: Readonly<Partial<Record<string, string>>>): EndTokens {
  const ids = idsOf(objectOf(files['config.json']).eos_token_id);
  return {
    ids: ids.length > 0 ? ids : idsOf(objectOf(files['generation_config.json']).eos_token_id),
    name: tokenName(objectOf(files['tokenizer_config.json']).eos_token),
  };
}

/** `eos_token_id`: a number, a list of them, or nothing. */
export function idsOf(value: unknown): number[] {
  const list: unknown[] = Array.isArray(value) ? value : [value];
  return list.filter((id): id is number => typeof id === 'number' && Number.isSafeInteger(id) && id >= 0);
}

/** A token in tokenizer_config.json: its text, or an object with it. */
export function tokenName(value: unknown): string | null {
  if (typeof value === 'string') return value;
  const content =
    typeof value === 'object' && value !== null ? (value as { content?: unknown }).content : null;
  return typeof content === 'string' ? content : null;
}

/** The object that a text of JSON holds; an empty one for anything else. */
export function objectOf(text: string | undefined): Readonly<Record<string, unknown>> {
  if (text === undefined) return {};
  try {
    const value: unknown = JSON.parse(text);
    const isObject = typeof value === 'object' && value !== null && !Array.isArray(value);
    return isObject ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}
