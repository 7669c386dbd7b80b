/** What the files of a model say about its end-of-text token. */
export interface EndTokens {
  /** From config.json, else from generation_config.json; empty if neither has one. */
  ids: readonly number[];
  /** `eos_token` of tokenizer_config.json; null if missing. */
  name: string | null;
  /** A client asked for this token, so no other may take its place. Absent if it comes from files. */
  isAsked?: boolean;
}

/** Nothing is known: the token names of well-known models decide. */
export const noEndTokens: EndTokens = { ids: [], name: null };

/** Reads config.json, generation_config.json and tokenizer_config.json as far as they exist; a file that is not JSON is ignored. */
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

/** A token in tokenizer_config.json: its text, or an object that contains it. */
export function tokenName(value: unknown): string | null {
  if (typeof value === 'string') return value;
  const content =
    typeof value === 'object' && value !== null ? (value as { content?: unknown }).content : null;
  return typeof content === 'string' ? content : null;
}

/** The object in a JSON text; empty for anything else. */
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
