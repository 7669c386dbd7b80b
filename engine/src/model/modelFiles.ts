import type { chatTemplatesFolder } from '../plan/chatTemplates.js';

/**
 * Files beside the weights that say how a model is used: they go through a run into its exports, where the ids that the job
 * changed are changed, and nothing else.
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

/** A template beside the first one, by its place in the folder. */
export type ChatTemplateName = `${typeof chatTemplatesFolder}/${string}`;

/** Their texts; empty for a model that did not begin at weights, or whose files speak of another tokenizer. */
export type ModelFiles = Readonly<Partial<Record<ModelFileName | ChatTemplateName, string>>>;

/** Every checkpoint holds them: models in use have up to three, of some kilobytes. */
export const chatTemplatesMax = 16;
export const chatTemplateBytesMax = 2 ** 18;

/** Longest of them: every checkpoint holds them. Those in use have less than one. */
export const modelFileBytesMax = 4 * 2 ** 20;
