import { DataError, describeValue } from './dataErrors.js';
import type { PrepareOptions } from './prepareDataset.js';
import { sourceFormats } from './sourceFormat.js';
import { trainedVocabularySizeMax, trainedVocabularySizeMin } from './trainBpe.js';

/** Required formats for prompts and completions. */
export const pairsHaveFields = 'jsonl, json, csv or parquet: a text has no fields for pairs';

/** Required formats for chats. */
export const chatsAreJson = 'jsonl or json: other formats have no lists of messages';

/** Throws DataError OPTIONS_INVALID for the first option out of range. */
export function checkOptions(options: PrepareOptions): void {
  const { files, tokenizer, textField, pairFields, chat, heldOutShare, seed, skipInvalid } = options;
  const check = (isRight: boolean, option: string, expected: string, got: unknown) => {
    if (!isRight) throw new DataError('OPTIONS_INVALID', { option, expected, got: describeValue(got) });
  };
  check(files.length > 0, 'files', 'at least one', files.length);
  for (const { format, split } of files) {
    const isFormat = format === 'auto' || sourceFormats.includes(format);
    check(isFormat, 'files.format', `auto, ${sourceFormats.join(', ')}`, format);
    check(['auto', 'train', 'heldOut'].includes(split), 'files.split', 'auto, train or heldOut', split);
  }
  check(textField !== '', 'textField', 'a name', textField);
  if (pairFields !== undefined) {
    const { prompt, completion } = pairFields;
    check(prompt !== '', 'pairFields.prompt', 'a name', prompt);
    check(
      completion !== '' && completion !== prompt,
      'pairFields.completion',
      'a name of its own',
      completion,
    );
    for (const { format } of files) check(format !== 'text', 'files.format', pairsHaveFields, format);
  }
  if (chat !== undefined) {
    check(chat.field !== '', 'chat.field', 'a name', chat.field);
    check(pairFields === undefined, 'pairFields', 'unset if chat is set', pairFields);
    for (const { format } of files)
      check(['auto', 'jsonl', 'json'].includes(format), 'files.format', chatsAreJson, format);
  }
  check(heldOutShare >= 0 && heldOutShare <= 0.5, 'heldOutShare', '0 to 0.5', heldOutShare);
  check(Number.isSafeInteger(seed), 'seed', 'a whole number', seed);
  if (skipInvalid && 'count' in skipInvalid) {
    const { count } = skipInvalid;
    check(Number.isSafeInteger(count) && count >= 0, 'skipInvalid.count', 'a whole number from 0 on', count);
  } else if (skipInvalid)
    check(skipInvalid.share >= 0 && skipInvalid.share <= 1, 'skipInvalid.share', '0 to 1', skipInvalid.share);
  if (tokenizer.kind !== 'trainedBpe') return;
  const { vocabularySize: size } = tokenizer;
  const isSize =
    Number.isInteger(size) && size >= trainedVocabularySizeMin && size <= trainedVocabularySizeMax;
  check(
    isSize,
    'tokenizer.vocabularySize',
    `${trainedVocabularySizeMin} to ${trainedVocabularySizeMax}`,
    size,
  );
}
