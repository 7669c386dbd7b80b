import type { Command } from 'commander';
import { ExportedWeights, FinishReason } from '@relora/sdk';
import { printableLines } from './screenText.js';
import { jobName, type Run } from './session.js';
import { decimalNumber, wholeNumber } from './specOptions.js';

interface GenerateFlags {
  prompt: string;
  tokens?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  seed?: number;
  best?: boolean;
}

export function addGenerateCommand(program: Command, run: Run): void {
  program
    .command('generate <model>')
    .description('generate text with a job or an artifact')
    .option('--prompt <text>', 'text to continue', '')
    .option('--tokens <n>', 'tokens to generate', wholeNumber)
    .option('--temperature <x>', '0 to always take the most likely token', decimalNumber)
    .option('--top-k <n>', 'sample from this many most likely tokens', wholeNumber)
    .option(
      '--top-p <x>',
      'sample from the most likely tokens that together have this probability',
      decimalNumber,
    )
    .option('--best', 'of a job: the checkpoint with its lowest held-out loss')
    .option('--seed <n>', 'the same seed gives the same text', wholeNumber)
    .action((model: string, flags: GenerateFlags) =>
      run(async ({ client, output, signal }) => {
        const { prompt, tokens, temperature, topK, topP, seed, best } = flags;
        let isFirst = true;
        for await (const piece of client.generate(jobName(model), {
          prompt,
          tokenCountMax: tokens,
          temperature,
          topK,
          topP,
          seed,
          ...(best && { weights: ExportedWeights.BEST }),
          signal,
        })) {
          output.result(piece, () => []);
          if (output.isJson) continue;
          process.stdout.write(printableLines(isFirst ? prompt + piece.text : piece.text));
          isFirst = false;
          if (piece.finishReason !== FinishReason.UNSPECIFIED) process.stdout.write('\n');
        }
      }),
    );
}
