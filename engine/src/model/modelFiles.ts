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

/** Their texts; empty for a model that did not begin at weights, or whose files speak of another tokenizer. */
export type ModelFiles = Readonly<Partial<Record<ModelFileName, string>>>;

/** Longest of them: every checkpoint holds them. Those in use have less than one. */
export const modelFileBytesMax = 4 * 2 ** 20;
