import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Command } from 'commander';
import { UsageError } from './exitCodes.js';
import type { RunAlone } from './session.js';

const schema = fileURLToPath(new URL('../job.schema.json', import.meta.url));

const template = `# yaml-language-server: $schema=job.schema.json
# A run file for \`relora run job.yaml\`. Settings that are left out have defaults, which \`relora create --validate-only\` shows.
title: A first run
labels:
  purpose: trial
# Uploaded as the data set; or name one that is there: spec.dataset: datasets/NAME
files: [corpus.txt]
output: relora-output
spec:
  kind: JOB_KIND_RELORA
  model:
    preset: demo
  step_count: 200
  adapter:
    rank: 16
    cycle_step_count: 50
  # A minute's run; larger batches learn more from each step.
  batch:
    sequence_length: 128
    sequence_count: 8
  evaluation:
    every_step_count: 50
  sample:
    every_step_count: 50
    prompt: 'Once upon a time'
`;

/** `relora init`: writes a template of a run file, and the schema with which editors complete it. */
export function addInitCommand(program: Command, runAlone: RunAlone): void {
  program
    .command('init [folder]')
    .description(
      'write job.yaml for relora run, and job.schema.json with which editors complete and check it',
    )
    .action((folder = '.') =>
      runAlone(async (output) => {
        const paths = [join(folder, 'job.yaml'), join(folder, 'job.schema.json')];
        try {
          await mkdir(folder, { recursive: true });
          // Never overwrites a file.
          await writeFile(paths[0]!, template, { flag: 'wx' });
          await copyFile(schema, paths[1]!);
        } catch (error) {
          throw new UsageError(`${folder} cannot be used for a run file: ${(error as Error).message}`);
        }
        output.result({ paths }, () => [`Wrote ${paths.join(' and ')}. Then: relora run ${paths[0]}`]);
      }),
    );
}
