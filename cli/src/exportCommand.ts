import type { Command } from 'commander';
import { ExportedWeights, ExportFormat, WeightType, type Artifact } from '@relora/sdk';
import { downloadText } from './dataCommands.js';
import { figure } from './format.js';
import { jobName, type Run } from './session.js';
import { oneOf, positiveNumber, wholeNumber } from './specOptions.js';

interface ExportFlags {
  format: string;
  type: string;
  out: string;
  checkpointStep?: number;
  best?: boolean;
  shardBytes?: number;
  requestId?: string;
}

const formats = { hf: ExportFormat.HUGGING_FACE, peft: ExportFormat.PEFT, gguf: ExportFormat.GGUF } as const;
const types = {
  f32: WeightType.FLOAT32,
  f16: WeightType.FLOAT16,
  bf16: WeightType.BFLOAT16,
  q8_0: WeightType.Q8_0,
} as const;

export function addExportCommand(program: Command, run: Run): void {
  program
    .command('export <job>')
    .description('export the weights of a job, also while it runs, and download them into a folder')
    .option('--format <format>', `one of ${Object.keys(formats).join(', ')}`, 'hf')
    .option('--type <type>', `of the weights, one of ${Object.keys(types).join(', ')}`, 'f32')
    .option('--out <folder>', 'folder for the files', 'relora-output')
    .option(
      '--checkpoint-step <n>',
      'step of a checkpoint that is kept; by default the present state, or the newest checkpoint',
      wholeNumber,
    )
    .option('--best', 'the checkpoint with the lowest held-out loss, if the job keeps it')
    .option('--shard-bytes <n>', 'largest size of a file of weights, in Hugging Face layout', positiveNumber)
    .option('--request-id <uuid>', 'UUID; a repeated command with the same UUID returns the same export')
    .action((job: string, flags: ExportFlags) =>
      run(async ({ client, output, signal }) => {
        const pending = await client.exportWeights(jobName(job), {
          format: oneOf('--format', flags.format, formats),
          weightType: oneOf('--type', flags.type, types),
          checkpointStep: flags.checkpointStep,
          ...(flags.best && { weights: ExportedWeights.BEST }),
          shardBytesMax: flags.shardBytes,
          ...(flags.requestId === undefined ? {} : { requestId: flags.requestId }),
          signal,
        });
        output.note(`Exporting ${pending.name} …`);
        const artifact = await client.waitForArtifact(pending.name, { signal });
        const paths = await client.downloadArtifact(artifact.name, flags.out, { signal });
        output.result({ artifact, paths }, () => [
          `Step ${artifact.step}, largest rounding error ${artifact.castErrorMax.toPrecision(3)}.`,
          ...differenceText(artifact),
          downloadText(paths, artifact.sizeBytes),
          ...paths.map((path) => `  ${path}`),
        ]);
      }),
    );
}

/** The difference that was measured after reading the files back. */
function differenceText({ difference }: Artifact): string[] {
  if (difference === undefined) return [];
  const { logitDifferenceRatio, logitDifferenceMax, loss, exportedLoss, tokenCount, heldOut } = difference;
  return [
    `Read back, its logits are ${figure(100 * logitDifferenceRatio)} % of their spread away from those of the run, at most ${figure(logitDifferenceMax)}; loss ${exportedLoss.toFixed(5)} for ${loss.toFixed(5)} on ${tokenCount} ${heldOut ? 'held-out' : 'training'} tokens.`,
  ];
}
