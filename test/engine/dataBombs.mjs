// Prepares one file in a separate process and prints the outcome: 'text' or the reason of the error.
import { DataError, prepareDataset } from '@relora/engine/data';

const [path, format, outputFolder] = process.argv.slice(2);
try {
  await prepareDataset(
    {
      files: [{ path, name: 'file', format, split: 'auto' }],
      outputFolder,
      tokenizer: { kind: 'bytes' },
      textField: 'text',
      heldOutShare: 0,
      seed: 1,
    },
    () => {},
    new AbortController().signal,
  );
  console.log('text', process.resourceUsage().maxRSS);
} catch (error) {
  if (!(error instanceof DataError)) throw error;
  console.log(error.reason, process.resourceUsage().maxRSS);
}
