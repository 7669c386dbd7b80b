/** Bounds on what a source file may make this process hold at once. */
export interface DataLimits {
  /** Longest line of JSONL, and longest stretch of text without white space. */
  lineBytesMax: number;
  /** Largest row group of a Parquet file, uncompressed, in the text column. */
  rowGroupBytesMax: number;
  /** Largest footer of a Parquet file. */
  parquetFooterBytesMax: number;
  /** Largest tokenizer.json. */
  tokenizerBytesMax: number;
  /** Text that a BPE vocabulary is trained on; more is sampled evenly. */
  bpeSampleBytesMax: number;
  /** Tokens of one shard file. */
  shardTokensMax: number;
}

export const defaultLimits: DataLimits = {
  lineBytesMax: 64 << 20,
  rowGroupBytesMax: 1 << 30,
  parquetFooterBytesMax: 64 << 20,
  tokenizerBytesMax: 64 << 20,
  bpeSampleBytesMax: 64 << 20,
  shardTokensMax: 64 << 20,
};
