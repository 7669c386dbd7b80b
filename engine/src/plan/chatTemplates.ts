import { objectOf, tokenName } from './endTokens.js';

/** Where Hugging Face keeps a model's additional templates, one file each. */
export const chatTemplatesFolder = 'additional_chat_templates';

/** The only files accepted from there: names that are valid on every system, directly in this folder. */
export const chatTemplatePattern = /^additional_chat_templates\/[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\.jinja$/;

/** Where newer models keep their main template. */
export const chatTemplateFile = 'chat_template.jinja';

/** The chat template and the tokens that it may use, from the files next to a tokenizer. */
export function chatFilesOf(files: Readonly<Partial<Record<string, string>>>): {
  /** Null if there is none. */
  template: string | null;
  tokens: Record<string, string>;
} {
  const config = objectOf(files['tokenizer_config.json']);
  const tokens: Record<string, string> = {};
  for (const name of [
    'bos_token',
    'eos_token',
    'unk_token',
    'pad_token',
    'sep_token',
    'cls_token',
    'mask_token',
  ]) {
    const text = tokenName(config[name]);
    if (text !== null) tokens[name] = text;
  }
  return { template: files[chatTemplateFile] ?? templateIn(config['chat_template']), tokens };
}

/** A template, or a list of named ones, from which `default` is taken. */
function templateIn(value: unknown): string | null {
  if (typeof value === 'string') return value;
  if (!Array.isArray(value)) return null;
  for (const entry of value as unknown[]) {
    const { name, template } = (entry ?? {}) as { name?: unknown; template?: unknown };
    if (name === 'default' && typeof template === 'string') return template;
  }
  return null;
}
