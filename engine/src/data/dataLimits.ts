const mebibyte = 2 ** 20;

/** Limits above which input is refused, or split, before memory is allocated for it. */
export interface DataLimits {
  /** Unpacked size of one compressed file. */
  unpackedBytesMax: number;
  /** One line of a JSONL file, one element of a JSON list, one row of CSV. */
  lineBytesMax: number;
  /** One text of a Parquet file. */
  documentBytesMax: number;
  /** Footer of a Parquet file. */
  parquetFooterBytesMax: number;
  /** The text column of one row group, compressed or not. */
  parquetColumnBytesMax: number;
  /** Rows of one row group. */
  parquetRowsMax: number;
  /** A tokenizer.json. */
  tokenizerBytesMax: number;
  /** Processor time in which a tokenizer.json must load and encode a line of text. */
  tokenizerCpuSeconds: number;
  /** Text from which a vocabulary is trained, spread over all documents. */
  tokenizerSampleBytesMax: number;
  /** One file of tokens. */
  shardBytesMax: number;
  /** Text that one thread encodes at a time. */
  blockBytesMax: number;
  /** A larger file of rows is read in parts of this size. */
  filePartBytes: number;
}

export const defaultLimits: Readonly<DataLimits> = {
  unpackedBytesMax: 64 * 1024 * mebibyte, // read in blocks: this bounds time and disk
  lineBytesMax: 64 * mebibyte, // must fit in a JavaScript string
  documentBytesMax: 64 * mebibyte,
  parquetFooterBytesMax: 64 * mebibyte,
  parquetColumnBytesMax: 1024 * mebibyte, // in memory twice: as bytes and as strings
  parquetRowsMax: 20_000_000,
  tokenizerBytesMax: 64 * mebibyte, // the largest in use have about 30
  tokenizerCpuSeconds: 60, // the largest in use take about two
  tokenizerSampleBytesMax: 64 * mebibyte, // more text hardly changes 30,000 merges and takes minutes
  shardBytesMax: 256 * mebibyte,
  blockBytesMax: 4 * mebibyte,
  filePartBytes: 64 * mebibyte, // a second of reading
};

/** A longer document is encoded in parts of this many bytes, cut where a word begins. */
export const pieceBytesMax = mebibyte;
