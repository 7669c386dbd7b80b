import type { chatTemplatesFolder } from '../plan/chatTemplates.js';

/**
 * Files next to the weights that say how a model is used: a run passes them on to its exports, in which only the ids that the job changed
 * are changed.
 */
export const modelFileNames = [
  'config.json',
  'generation_config.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'chat_template.jinja',
  'chat_template.json',
] as const;

export type ModelFileName = (typeof modelFileNames)[number];

/** An additional template, by its path in the folder. */
export type ChatTemplateName = `${typeof chatTemplatesFolder}/${string}`;

/** Their texts; empty for a model that did not start from weights, or whose files are for another tokenizer. */
export type ModelFiles = Readonly<Partial<Record<ModelFileName | ChatTemplateName, string>>>;

/** Every checkpoint contains them: real models have up to three, of some kilobytes. */
export const chatTemplatesMax = 16;
export const chatTemplateBytesMax = 2 ** 18;

/** Longest file, in bytes: every checkpoint contains them. Those in use are below one MiB. */
export const modelFileBytesMax = 4 * 2 ** 20;
